-- foreign_lock --
-- Another system's messages that are still dead, locked in the order of their ids.
SELECT source, outbox_id, replays, updated_at, attempts, error_code, error
FROM outbox_foreign
WHERE (source, outbox_id) IN (SELECT * FROM unnest(%(sources)s::text[], %(ids)s::bigint[]))
  AND status = 'dead'
ORDER BY source, outbox_id
FOR UPDATE;

-- foreign_replay --
-- Locked messages to be tried again from what was kept of them, in the order given; workers take up
-- what is due.
WITH drawn AS MATERIALIZED (
    SELECT source, outbox_id, nextval('outbox_arrived') AS arrived
    FROM unnest(%(sources)s::text[], %(ids)s::bigint[])
         WITH ORDINALITY AS given (source, outbox_id, position)
    ORDER BY position
)
UPDATE outbox_foreign AS s
SET status = 'retrying', open = true, attempts = 0, replays = s.replays + 1,
    arrived = coalesce(s.arrived, drawn.arrived), next_retry_at = now(), updated_at = now()
FROM drawn
WHERE s.source = drawn.source AND s.outbox_id = drawn.outbox_id
RETURNING s.source, s.outbox_id;

-- foreign_edit --
-- Another payload for a locked message; the first one stays beside it.
UPDATE outbox_foreign
SET payload = %(payload)s, key = %(key)s, replaced = coalesce(replaced, payload)
WHERE source = %(source)s AND outbox_id = %(outbox_id)s;

-- foreign_discard --
-- Locked messages given up for good; a conversation they held goes on, and their text is needed no
-- more.
UPDATE outbox_foreign
SET status = 'discarded', open = false, next_retry_at = NULL, payload = NULL, replaced = NULL,
    updated_at = now()
WHERE (source, outbox_id) IN (SELECT * FROM unnest(%(sources)s::text[], %(ids)s::bigint[]));

-- foreign_payload --
-- The text that counts, while it is kept.
SELECT payload, biz_type, key FROM outbox_foreign
WHERE source = %(source)s AND outbox_id = %(outbox_id)s;

-- foreign_status --
-- Where this message stands.
SELECT status FROM outbox_foreign WHERE source = %(source)s AND outbox_id = %(outbox_id)s;

-- foreign_held --
-- Dead messages that hold their conversation, locked in the order of their ids.
SELECT source, outbox_id
FROM outbox_foreign
WHERE open AND key = %(key)s AND status = 'dead' AND (%(topic)s::text IS NULL OR topic = %(topic)s)
ORDER BY source, outbox_id
FOR UPDATE;

-- foreign_release --
-- They stay dead, and hold nothing any more.
UPDATE outbox_foreign
SET open = false, updated_at = now()
WHERE (source, outbox_id) IN (SELECT * FROM unnest(%(sources)s::text[], %(ids)s::bigint[]));

-- trace_foreign --
-- All that is known of another system's messages but their text; `behind` is the first open one of
-- a parked one's conversation.
SELECT f.source, f.outbox_id, f.biz_type, f.topic, f.key,
       CASE WHEN f.created_at BETWEEN '0001-01-01' AND '9999-12-31'
            THEN f.created_at AT TIME ZONE 'UTC' END AS created_at,
       octet_length(f.payload) AS bytes,
       NULL::text AS traceparent, true AS published, f.status, f.attempts, f.replays,
       f.error_code, f.error, f.next_retry_at, f.partition, f."offset", f.applied,
       NULL::bigint AS source_id, f.updated_at, head.outbox_id AS behind
FROM outbox_foreign AS f
LEFT JOIN LATERAL (
    SELECT h.outbox_id
    FROM outbox_foreign AS h
    WHERE f.status = 'parked' AND h.open AND h.source = f.source AND h.topic = f.topic
      AND h.key = f.key
    ORDER BY h.arrived
    LIMIT 1
) AS head ON true
WHERE (f.source, f.outbox_id) IN (SELECT * FROM unnest(%(sources)s::text[], %(ids)s::bigint[]))
ORDER BY f.source, f.outbox_id;

-- trace_foreign_key --
-- The newest messages of a conversation; there is no index on the key.
SELECT outbox_id
FROM outbox_foreign
WHERE source = %(source)s AND key = %(key)s
  AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s AT TIME ZONE 'UTC')
ORDER BY outbox_id DESC
LIMIT %(limit)s;
