-- relays_sharing --
-- How many relays hold it together.
SELECT count(*)
FROM pg_locks
CROSS JOIN (
    SELECT hashtextextended('outbox-streams relay ' || %(name)s,
                            'outbox'::regclass::oid::bigint) AS number
) AS lock
WHERE locktype = 'advisory'
  AND mode = 'ShareLock'
  AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid::bigint = (number >> 32) & 4294967295
  AND objid::bigint = number & 4294967295
  AND objsubid = 1;

-- shards_running --
-- The number of shards that relays of this name agreed on last.
SELECT max(shards) FROM relay_shards WHERE name = %(name)s;

-- drop_shards --
-- What shards of before were is nothing to begin at: relay_position has the floor that an operator
-- may have moved back.
DELETE FROM relay_shards WHERE name = %(name)s;

-- make_shards --
-- Every shard begins where the relay is, whatever mode it had.
INSERT INTO relay_shards (name, shard, shards, floor)
SELECT %(name)s, shard, %(shards)s,
       coalesce((SELECT floor FROM relay_position WHERE name = %(name)s), 0)
FROM generate_series(0, %(shards)s - 1) AS shard;

-- shard_floors --
-- Where each of these shards is.
SELECT shard, floor FROM relay_shards WHERE name = %(name)s AND shard = ANY(%(mine)s)
ORDER BY shard;

-- save_shards --
-- What this leader of some shards has confirmed, which stays true whoever says it; gives back the
-- floor of all of them.
WITH saved AS (
    UPDATE relay_shards
    SET floor = greatest(floor, %(floor)s), leader = %(leader)s, pid = %(pid)s, heartbeat = now()
    WHERE name = %(name)s AND shards = %(shards)s AND shard = ANY(%(mine)s)
    RETURNING shard, floor
)
SELECT coalesce(min(coalesce(saved.floor, s.floor)), 0)
FROM relay_shards AS s
LEFT JOIN saved USING (shard)
WHERE s.name = %(name)s AND s.shards = %(shards)s;

-- shard_window --
-- The next visible ids of all shards: how many, the last, and the ranges of ids between them that
-- are not visible.
SELECT count(*), max(id),
       coalesce(array_agg(before + 1 ORDER BY id) FILTER (WHERE before + 1 < id), '{}'),
       coalesce(array_agg(id - 1 ORDER BY id) FILTER (WHERE before + 1 < id), '{}')
FROM (
    SELECT id, lag(id, 1, %(newest)s::bigint) OVER (ORDER BY id) AS before
    FROM (SELECT id FROM outbox WHERE id > %(newest)s ORDER BY id LIMIT %(most)s) AS visible
) AS seen;

-- shard_newer --
-- What is visible there of these shards, beyond where each of them is; `after` is null for the
-- shards of others.
SELECT topic, key, payload, created_at, id, biz_type, traceparent, resend_of
FROM outbox
WHERE id > %(newest)s AND id <= %(last)s
  AND id > (%(after)s::bigint[])[1 + outbox_shard(key, %(shards)s)]
ORDER BY id
LIMIT %(most)s;

-- shard_gaps --
-- The same in the gaps that were left.
SELECT o.topic, o.key, o.payload, o.created_at, o.id, o.biz_type, o.traceparent, o.resend_of
FROM unnest(%(lows)s::bigint[], %(highs)s::bigint[]) AS gap (low, high)
JOIN outbox AS o ON o.id BETWEEN gap.low AND gap.high AND o.id BETWEEN %(first)s AND %(last)s
WHERE o.id > (%(after)s::bigint[])[1 + outbox_shard(o.key, %(shards)s)]
ORDER BY o.id
LIMIT %(most)s;

-- shard_others --
-- Ids in those gaps that belong to the shards of others.
SELECT o.id
FROM unnest(%(lows)s::bigint[], %(highs)s::bigint[]) AS gap (low, high)
JOIN outbox AS o ON o.id BETWEEN gap.low AND gap.high AND o.id BETWEEN %(first)s AND %(last)s
WHERE (o.id > (%(after)s::bigint[])[1 + outbox_shard(o.key, %(shards)s)]) IS NOT TRUE
ORDER BY o.id
LIMIT %(most)s;
