-- dead_page --
-- Dead messages that fit, without their text, those that died last first, from before one of them
-- on.
SELECT source, outbox_id, biz_type, topic, key, error_code, fingerprint, held, died, died_at
FROM outbox_dead_letters
WHERE died < coalesce(%(before)s::bigint, 9223372036854775807)
  AND (%(source)s::text IS NULL OR source = %(source)s)
  AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
  AND (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(error_code)s::text IS NULL OR error_code = %(error_code)s)
  AND (%(fingerprint)s::text IS NULL OR fingerprint = %(fingerprint)s)
  AND (%(since)s::timestamptz IS NULL OR died_at >= %(since)s)
  AND (NOT %(held)s OR held)
ORDER BY died DESC
LIMIT %(limit)s;

-- axis_open --
-- The open messages of a conversation that are first in line, and the dead ones that died last, so
-- many of each: both have an index.
SELECT outbox_id
FROM (
    SELECT outbox_id
    FROM outbox_open
    WHERE topic = %(topic)s AND key = %(key)s
    ORDER BY arrived
    LIMIT %(most)s
) AS first
UNION
SELECT outbox_id
FROM (
    SELECT outbox_id
    FROM outbox_dead_letters
    WHERE topic = %(topic)s AND key = %(key)s AND source = ''
    ORDER BY died DESC
    LIMIT %(most)s
) AS last;

-- axis_window --
-- A conversation's newest messages among these ids, so many at most: there is no index on the key,
-- so that an enqueue stays cheap.
SELECT id
FROM outbox
WHERE id > %(after)s AND id <= %(until)s AND topic = %(topic)s AND key = %(key)s
  AND resend_of IS NULL
ORDER BY id DESC
LIMIT %(most)s;

-- axis_items --
-- What is known of these messages of one conversation, in order.
SELECT o.id, o.biz_type,
       CASE WHEN o.created_at BETWEEN '0001-01-02' AND '9999-12-30'
            THEN o.created_at AT TIME ZONE 'UTC' END,
       coalesce(s.status, CASE WHEN o.id <= relay.floor THEN 'published' ELSE 'pending' END),
       coalesce(s.attempts, 0), s.error_code, s.next_retry_at, s.partition, s."offset", s.applied,
       s.arrived, s.updated_at, coalesce(again.times, 0)
FROM outbox AS o
CROSS JOIN (SELECT coalesce(max(floor), 0) AS floor FROM relay_position) AS relay
LEFT JOIN outbox_state AS s ON s.outbox_id = o.id AND s.outbox_id = ANY(%(ids)s::bigint[])
LEFT JOIN (
    SELECT resend_of, count(*) AS times
    FROM outbox
    WHERE id > %(after)s AND resend_of = ANY(%(ids)s::bigint[])
    GROUP BY resend_of
) AS again ON again.resend_of = o.id
WHERE o.id = ANY(%(ids)s::bigint[])
ORDER BY o.id;

-- axis_foreign --
-- The same of another system's messages, the newest first, from before one of them on: their
-- conversations have an index while they are open.
SELECT outbox_id, biz_type,
       CASE WHEN created_at BETWEEN '0001-01-02' AND '9999-12-30'
            THEN created_at AT TIME ZONE 'UTC' END,
       status, attempts, error_code, next_retry_at, partition, "offset", applied, arrived,
       updated_at, 0::bigint
FROM outbox_foreign
WHERE source = %(source)s AND topic = %(topic)s AND key = %(key)s AND (open OR status = 'dead')
  AND outbox_id < coalesce(%(before)s::bigint, 9223372036854775807)
ORDER BY outbox_id DESC
LIMIT %(most)s;

-- written_until --
-- Where the log of this database ends: all that was committed is before it.
SELECT pg_current_wal_flush_lsn()::text;

-- shows_until --
-- Whether this database shows all that was committed before there: a replica once it has replayed
-- that.
SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= %(until)s::pg_lsn;

-- acts_page --
-- What operators did, the newest first, from before one act on; the ids only as far as asked for.
SELECT id, at, who, act, outbox_id, what - 'ids', coalesce((what ->> 'count')::bigint, 0), why,
       (what ->> 'operation')::bigint
FROM outbox_actions
WHERE id < coalesce(%(before)s::bigint, 9223372036854775807)
  AND (%(who)s::text IS NULL OR who = %(who)s)
  AND (%(act)s::text IS NULL OR act = %(act)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- audits_page --
-- What audits found, the newest first, from before one on.
SELECT id, at, seconds, complete, messages, wrong, report
FROM outbox_audits
WHERE id < coalesce(%(before)s::bigint, 9223372036854775807)
ORDER BY id DESC
LIMIT %(limit)s;

-- asked_audit --
-- The audit that somebody asked for last, among the newest acts: it is done when one that began
-- since has written its report, and lost when there was none for half an hour.
SELECT a.at, a.who, a.why, coalesce((a.what ->> 'full')::boolean, false),
       CASE
           WHEN ended.error IS NOT NULL THEN 'failed'
           WHEN EXISTS (
               SELECT FROM outbox_audits AS o
               WHERE o.at - o.seconds * interval '1 second' >= a.at
                 AND (o.complete OR NOT coalesce((a.what ->> 'full')::boolean, false))
           ) THEN 'done'
           WHEN a.at < now() - interval '30 minutes' THEN 'lost'
           ELSE 'running'
       END,
       ended.error
FROM (
    SELECT *
    FROM (SELECT * FROM outbox_actions ORDER BY id DESC LIMIT 10000) AS newest
    WHERE act = 'audit' AND at > now() - interval '1 day'
    ORDER BY id DESC
    LIMIT 1
) AS a
LEFT JOIN LATERAL (
    SELECT what ->> 'error' AS error
    FROM outbox_actions
    WHERE id > a.id AND act = 'audit failed'
    ORDER BY id
    LIMIT 1
) AS ended ON true;

-- stats_kinds --
-- How many biz_types there are figures of, at most.
SELECT count(*) FROM outbox_biz_types;

-- stats_series --
-- Counts and histograms of each biz_type in buckets of one width, and what is not merged yet put to
-- the bucket it is in.
SELECT date_bin(%(width)s * interval '1 second', bucket, 'epoch') AS at, biz_type,
       sum(enqueued)::bigint, sum(relayed)::bigint, sum(consumed)::bigint, sum(retried)::bigint,
       sum(parked)::bigint, sum(dead)::bigint, sum(skipped)::bigint
FROM outbox_stats
WHERE projection = %(projection)s
  AND ((width = %(width)s AND process = '' AND bucket >= %(since)s)
       OR (width = 10 AND process <> '' AND bucket >= %(since)s))
GROUP BY at, biz_type
ORDER BY at, biz_type;

-- latency_series --
-- Histograms of the same buckets, of one version of the bounds.
SELECT date_bin(%(width)s * interval '1 second', bucket, 'epoch'), latency
FROM outbox_stats
WHERE projection = %(projection)s AND bounds = %(bounds)s AND latency <> '{}'
  AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s)
  AND ((width = %(width)s AND process = '' AND bucket >= %(since)s)
       OR (width = 10 AND process <> '' AND bucket >= %(since)s));

-- gauge_series --
-- Each gauge in buckets of one width: its last and its highest value.
SELECT bucket, name, label, value, highest
FROM outbox_gauges
WHERE width = %(width)s AND bucket >= %(since)s
ORDER BY bucket, name, label;

-- reading_message --
-- Whether there is such a message.
SELECT CASE
           WHEN %(source)s = '' THEN EXISTS (SELECT FROM outbox WHERE id = %(outbox_id)s)
           ELSE EXISTS (SELECT FROM outbox_foreign
                        WHERE source = %(source)s AND outbox_id = %(outbox_id)s)
       END;

-- reading_cause --
-- Whether anything is dead of that cause, or with that error code.
SELECT EXISTS (SELECT FROM outbox_dead_letters WHERE fingerprint = %(text)s),
       EXISTS (SELECT FROM outbox_dead_letters WHERE error_code = %(text)s);

-- reading_conversation --
-- Conversations with this key that have anything open or dead, whose they are, and the topics there
-- are.
SELECT topic, source, bool_or(there)
FROM (
    SELECT topic, '' AS source, false AS there FROM outbox_biz_types WHERE retired_at IS NULL
    UNION ALL
    SELECT topic, '', true FROM outbox_open WHERE key = %(text)s
    UNION ALL
    SELECT topic, source, true FROM outbox_foreign WHERE open AND key = %(text)s
    UNION ALL
    SELECT topic, source, true FROM outbox_dead_letters WHERE key = %(text)s
) AS readings
GROUP BY topic, source
ORDER BY topic, source;
