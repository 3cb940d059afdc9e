-- trace_roots --
-- The messages these outbox rows belong to: themselves, or what they send again.
SELECT coalesce(resend_of, id) FROM outbox WHERE id = ANY(%(ids)s::bigint[]);

-- trace_messages --
-- All that is known of these messages but their text; `behind` is the first open message of a
-- parked one's conversation.
SELECT o.id AS outbox_id, o.biz_type, o.topic, o.key,
       CASE WHEN o.created_at BETWEEN '0001-01-02' AND '9999-12-30'
           THEN o.created_at AT TIME ZONE 'UTC' END AS created_at,
       octet_length(o.payload::text) AS bytes, o.traceparent, o.id <= relay.floor AS published,
       s.status, s.attempts, s.replays, s.error_code, s.error, s.next_retry_at, s.partition,
       s."offset", s.applied, s.source_id, s.updated_at, head.outbox_id AS behind
FROM outbox AS o
CROSS JOIN (SELECT coalesce(max(floor), 0) AS floor FROM relay_position) AS relay
LEFT JOIN outbox_state AS s ON s.outbox_id = o.id AND s.outbox_id = ANY(%(ids)s::bigint[])
LEFT JOIN LATERAL (
    SELECT h.outbox_id
    FROM outbox_open AS h
    WHERE s.status = 'parked' AND h.topic = s.topic AND h.key = s.key
    ORDER BY h.arrived
    LIMIT 1
) AS head ON true
WHERE o.id = ANY(%(ids)s::bigint[]) AND o.resend_of IS NULL
ORDER BY o.id;

-- trace_resends --
-- Each time one of these messages was sent again, which is behind the first of them.
SELECT o.resend_of AS outbox_id, o.id AS resend,
       CASE WHEN o.created_at BETWEEN '0001-01-02' AND '9999-12-30'
           THEN o.created_at AT TIME ZONE 'UTC' END AS created_at,
       o.id <= relay.floor AS published
FROM outbox AS o
CROSS JOIN (SELECT coalesce(max(floor), 0) AS floor FROM relay_position) AS relay
WHERE o.resend_of = ANY(%(ids)s::bigint[]) AND o.id > %(after)s
ORDER BY o.id;

-- trace_actions --
-- What operators did to these messages, alone or with others; `died` is [when, attempts, which
-- error] of what was dead then, `error` that error, as [code, error].
SELECT affected.name, a.at, a.who, a.act, a.why, a.what - '{ids,died,errors}'::text[] AS what,
       a.what -> 'died' -> affected.name AS died,
       a.what -> 'errors' -> (a.what -> 'died' -> affected.name ->> 2)::int AS error
FROM outbox_actions AS a
CROSS JOIN LATERAL (
    SELECT a.outbox_id::text AS name
    UNION
    SELECT jsonb_array_elements_text(a.what->'ids')
) AS affected
WHERE affected.name = ANY(%(names)s::text[])
ORDER BY a.id;

-- trace_direct --
-- Whether this id was written while the outbox was disabled.
SELECT EXISTS (SELECT FROM outbox_direct WHERE outbox_id = %(outbox_id)s);

-- trace_window --
-- A conversation's messages among these ids, newest first: no index on the key, so that an enqueue
-- stays cheap.
SELECT id
FROM outbox
WHERE id > %(after)s AND id <= %(until)s AND key = %(key)s AND resend_of IS NULL
ORDER BY id DESC
LIMIT %(limit)s;

-- trace_older --
-- Whether the first row above this id was enqueued before that time.
SELECT created_at AT TIME ZONE 'UTC' < %(since)s FROM outbox WHERE id > %(after)s ORDER BY id
LIMIT 1;

-- trace_waits --
-- What runs wait for, of processes with a sign of life; and how many partitions each topic has, as
-- it was noted last.
SELECT p.waits_for, p.waits_code, p.waits_since, p.host || ':' || p.pid AS place,
       (SELECT jsonb_object_agg(t.topic, t.partitions)
        FROM (SELECT DISTINCT ON (topic) topic, partitions FROM outbox_topics
              ORDER BY topic, noted_at DESC) AS t) AS partitions
FROM outbox_processes AS p
WHERE p.waits_for IS NOT NULL AND p.ended IS NULL
  AND p.heartbeat > %(at)s::timestamptz - interval '1 minute'
ORDER BY p.waits_since;
