-- figures_flush --
-- What a process has counted in its open bucket, as absolute values, so that sending it twice is
-- sending it once; nothing when the bucket is older than 30 seconds: it may be merged after 60.
-- Gives the bucket that is open now, and whether it was taken.
WITH moment AS MATERIALIZED (
    SELECT date_bin('10 s', clock_timestamp(), 'epoch') AS bucket,
           coalesce(%(bucket)s::timestamptz > clock_timestamp() - interval '30 seconds',
                    false) AS taken,
           extract(epoch FROM clock_timestamp())::double precision AS clock
), written AS (
    INSERT INTO outbox_stats (width, bucket, process, projection, biz_type, consumed, retried,
                              parked, dead, skipped, latency, bounds)
    SELECT 10, %(bucket)s::timestamptz, %(process)s, %(projection)s, r.biz_type, r.consumed,
           r.retried, r.parked, r.dead, r.skipped, r.latency, %(bounds)s
    FROM json_to_recordset(%(rows)s::json)
         AS r (biz_type text, consumed bigint, retried bigint, parked bigint, dead bigint,
               skipped bigint, latency bigint[])
    WHERE (SELECT taken FROM moment)
    ON CONFLICT (width, bucket, process, projection, biz_type) DO UPDATE
    SET consumed = excluded.consumed, retried = excluded.retried, parked = excluded.parked,
        dead = excluded.dead, skipped = excluded.skipped, latency = excluded.latency,
        bounds = excluded.bounds
)
SELECT bucket, taken, clock FROM moment;

-- process_beat --
-- A sign of life, and what the process does now; gives how many processes there are, which says how
-- often to come back.
INSERT INTO outbox_processes
     AS p (id, kind, name, host, pid, version, address, partitions, memory, runs, pool_used,
           pool_size,
                                   waits_for, waits_code, waits_since, figures)
VALUES (%(id)s, %(kind)s, %(name)s, %(host)s, %(pid)s, %(version)s, %(address)s,
        %(partitions)s::jsonb, %(memory)s, %(runs)s, %(pool_used)s, %(pool_size)s, %(waits_for)s,
        %(waits_code)s, now() - %(waits_seconds)s * interval '1 second',
        %(figures)s::jsonb)
ON CONFLICT (id) DO UPDATE
SET address = excluded.address, partitions = excluded.partitions, memory = excluded.memory,
    runs = excluded.runs, pool_used = excluded.pool_used, pool_size = excluded.pool_size,
    waits_for = excluded.waits_for, waits_code = excluded.waits_code,
    waits_since = CASE
                      WHEN excluded.waits_for IS NOT DISTINCT FROM p.waits_for
                      AND p.waits_since IS NOT NULL
                      THEN least(p.waits_since, excluded.waits_since)
                      ELSE excluded.waits_since
                  END,
    figures = excluded.figures, heartbeat = now(), ended = NULL
RETURNING (SELECT count(*) FROM outbox_processes WHERE heartbeat > now() - interval '1 minute');

-- process_end --
-- It ended in order.
UPDATE outbox_processes
SET ended = now(), heartbeat = now(), runs = 0, partitions = '{}', waits_for = NULL
WHERE id = %(id)s;

-- lag_note --
-- How far a group is, as it was some seconds ago; what was seen later stays.
INSERT INTO outbox_lag
     AS l ("group", topic, partition, topic_id, committed, end_offset, log_start, worked, moved, at)
SELECT %(group)s, r.topic, r.partition, r.topic_id, r.committed, r.end_offset, r.log_start,
       r.worked, seen.at, seen.at
FROM json_to_recordset(%(rows)s::json)
     AS r (topic text, partition integer, topic_id text, committed bigint, end_offset bigint,
           log_start bigint, worked timestamptz)
CROSS JOIN (SELECT clock_timestamp() - %(age)s * interval '1 second' AS at) AS seen
ORDER BY r.topic, r.partition
ON CONFLICT ("group", topic, partition) DO UPDATE
SET topic_id = coalesce(excluded.topic_id, l.topic_id),
    committed = CASE WHEN excluded.topic_id IS DISTINCT FROM l.topic_id
    AND excluded.topic_id IS NOT NULL
                     THEN excluded.committed ELSE coalesce(excluded.committed, l.committed) END,
    end_offset = coalesce(excluded.end_offset, l.end_offset),
    log_start = coalesce(excluded.log_start, l.log_start),
    worked = greatest(excluded.worked, l.worked),
    moved = CASE
                WHEN coalesce(excluded.committed, l.committed) IS DISTINCT FROM l.committed
                     OR coalesce(excluded.end_offset, l.end_offset) <= coalesce(excluded.committed,
                                                                                l.committed, 0)
                THEN excluded.at
                ELSE l.moved
            END,
    at = excluded.at
WHERE l.at <= excluded.at;

-- counted_rows --
-- Up to which id rows were counted, locked: whoever counts on does so alone.
SELECT counted FROM outbox_primary WHERE relay = '' FOR UPDATE;

-- count_rows --
-- Rows between two ids by biz_type: those that are messages, and all that were relayed.
SELECT biz_type, count(*) FILTER (WHERE resend_of IS NULL), count(*)
FROM outbox
WHERE id > %(after)s AND id <= %(until)s
GROUP BY biz_type
ORDER BY biz_type;

-- rows_counted --
-- Rows up to this id are counted from now on.
UPDATE outbox_primary SET counted = %(until)s, at = now() WHERE relay = '';

-- figures_take --
-- What processes counted in buckets that nobody writes any more.
DELETE FROM outbox_stats
WHERE width = 10 AND process <> '' AND bucket < now() - interval '60 seconds'
RETURNING bucket, projection, biz_type, enqueued, relayed, consumed, retried, parked, dead, skipped,
          latency, bounds;

-- figures_add --
-- Add to the rows of all processes; a bucket that is null is the one that is open now.  Histograms
-- of other bounds give way.
INSERT INTO outbox_stats
     AS s (width, bucket, process, projection, biz_type, enqueued, relayed, consumed, retried,
           parked, dead,
                               skipped, latency, bounds)
SELECT r.width, coalesce(r.bucket, date_bin(r.width * interval '1 second', now(), 'epoch')), '',
       r.projection, r.biz_type, r.enqueued, r.relayed, r.consumed, r.retried, r.parked, r.dead,
       r.skipped, r.latency, r.bounds
FROM json_to_recordset(%(rows)s::json)
     AS r (width integer, bucket timestamptz, projection text, biz_type text, enqueued bigint,
           relayed bigint, consumed bigint, retried bigint, parked bigint, dead bigint,
           skipped bigint, latency bigint[], bounds smallint)
ORDER BY r.width, 2, r.projection, r.biz_type
ON CONFLICT (width, bucket, process, projection, biz_type) DO UPDATE
SET enqueued = s.enqueued + excluded.enqueued, relayed = s.relayed + excluded.relayed,
    consumed = s.consumed + excluded.consumed, retried = s.retried + excluded.retried,
    parked = s.parked + excluded.parked, dead = s.dead + excluded.dead,
    skipped = s.skipped + excluded.skipped,
    latency = CASE
                  WHEN s.bounds <> excluded.bounds THEN excluded.latency
                  ELSE (SELECT coalesce(array_agg(coalesce(u.a, 0) + coalesce(u.b, 0)
                                                  ORDER BY u.place), '{}')
                        FROM ROWS FROM (unnest(s.latency), unnest(excluded.latency))
                             WITH ORDINALITY AS u (a, b, place))
              END,
    bounds = excluded.bounds;

-- figures_forget --
-- What is older than its period.
WITH gone AS (
    DELETE FROM outbox_stats
    WHERE process = ''
      AND ((width = 10 AND bucket < now() - interval '2 hours')
           OR (width = 60 AND bucket < now() - interval '3 days')
           OR (width = 3600 AND bucket < now() - interval '90 days'))
), gauges AS (
    DELETE FROM outbox_gauges
    WHERE (width = 10 AND bucket < now() - interval '2 hours')
       OR (width = 60 AND bucket < now() - interval '3 days')
       OR (width = 3600 AND bucket < now() - interval '90 days')
), lag AS (
    DELETE FROM outbox_lag WHERE at < now() - interval '7 days'
)
DELETE FROM outbox_processes WHERE heartbeat < now() - interval '61 minutes';

-- gauges_note --
-- Values of now, in each width: the last and the highest of its bucket.
INSERT INTO outbox_gauges AS g (width, bucket, name, label, value, highest)
SELECT width, date_bin(width * interval '1 second', now(), 'epoch'), r.name, r.label, r.value,
       r.value
FROM json_to_recordset(%(rows)s::json) AS r (name text, label text, value double precision)
CROSS JOIN (VALUES (10), (60), (3600)) AS widths (width)
ORDER BY 1, 2, r.name, r.label
ON CONFLICT (width, bucket, name, label) DO UPDATE
SET value = excluded.value, highest = greatest(g.highest, excluded.value);

-- primary_note --
-- What this leader sees of the primary and of Kafka.
INSERT INTO outbox_primary (relay, seen) VALUES (%(relay)s, %(seen)s::jsonb)
ON CONFLICT (relay) DO UPDATE SET seen = excluded.seen, at = now();

-- lag_topics --
-- Records before the group, by topic.
SELECT topic, sum(greatest(0, end_offset - coalesce(committed, log_start)))::double precision
FROM outbox_lag
WHERE at > now() - interval '1 minute' AND "group" = %(group)s
GROUP BY topic
ORDER BY topic;

-- first_fateless --
-- The first message between two ids without a fate, and when it was enqueued: since 1970, and not
-- after now.
SELECT o.id,
       least(greatest(o.created_at, '1970-01-01'), now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
FROM outbox AS o
WHERE o.id > %(after)s AND o.id <= %(until)s AND o.resend_of IS NULL
  AND NOT EXISTS (
      SELECT FROM outbox_state AS s
      WHERE s.outbox_id = o.id AND s.outbox_id > %(after)s AND s.outbox_id <= %(until)s)
ORDER BY o.id
LIMIT 1;

-- oldest_open --
-- Since when the conversation waits that waits longest.
SELECT extract(epoch FROM now() - min(since))::double precision
FROM (
    SELECT min(opened) AS since FROM outbox_open
    UNION ALL
    SELECT min(opened) FROM outbox_foreign WHERE open
) AS waiting;

-- moment --
-- What time it is.
SELECT clock_timestamp();
