-- relays_standing --
-- How each relay stands, or the one asked for, led or not.  Rows behind: ids drawn since the floor,
-- rolled back ones too.
SELECT n.name, p.mode, p.asked, p.wish, p.doing, p.reason, coalesce(p.rate, 0) AS rate,
       p.lsn::text AS position, coalesce(p.floor, 0) AS floor, p.leader, p.pid,
       extract(epoch FROM now() - p.heartbeat)::double precision AS silent,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), p.lsn)::bigint AS lag_bytes,
       greatest(0, ids.newest - coalesce(p.floor, 0)) AS lag_rows, ids.newest,
       coalesce(p.identity <> outbox_identity() OR ids.newest < p.floor, false) AS strange,
       p.retention -> 'waits' AS retention,
       CASE WHEN p.retention -> 'at' IS NOT NULL
            THEN extract(epoch FROM now() - (p.retention ->> 'at')::timestamptz)
            WHEN p.retention IS NOT NULL THEN 0 END::double precision AS retention_idle,
       s.wal_status, s.active_pid IS NOT NULL AS slot_active, s.safe_wal_size,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn)::bigint AS held
FROM (SELECT name FROM relay_position WHERE %(relay)s::text IS NULL UNION SELECT %(relay)s) AS n
LEFT JOIN relay_position AS p USING (name)
LEFT JOIN pg_replication_slots AS s ON s.slot_name = n.name AND s.database = current_database()
CROSS JOIN (SELECT last_value - (NOT is_called)::int AS newest FROM outbox_id_seq) AS ids
WHERE n.name IS NOT NULL
ORDER BY n.name;

-- oldest_above --
-- For how many seconds the oldest row above this floor has been there.
SELECT extract(epoch FROM (now() AT TIME ZONE 'UTC') - least(
           greatest(created_at, '1970-01-01'), now() AT TIME ZONE 'UTC'))::double precision
FROM outbox
WHERE id > %(floor)s AND id <= %(newest)s
ORDER BY id
LIMIT 1;

-- relay_attendance --
-- Sessions that lead this relay or stand by for it; they say who they are in their
-- application_name.  Those of an earlier release hold the old lock, of whichever outbox.
SELECT a.application_name
FROM pg_locks AS l
JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory'
  AND l.mode = 'ShareLock'
  AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint)
      IN (hashtextextended('outbox-streams relays ' || %(relay)s, 'outbox'::regclass::oid::bigint),
          hashtextextended('outbox-streams relays ' || %(relay)s, 0))
ORDER BY a.backend_start;

-- relay_sharing --
-- Relays that lead some shards of this one, and which.
SELECT pid, leader, array_agg(shard ORDER BY shard)
FROM relay_shards
WHERE name = %(relay)s AND heartbeat > now() - interval '10 seconds'
GROUP BY pid, leader
ORDER BY min(shard);

-- relay_switch --
-- What operators want this relay to do; whoever leads it in mode auto follows within a second.
UPDATE relay_position SET wish = %(wish)s WHERE name = %(relay)s
RETURNING asked, leader IS NOT NULL AND heartbeat > now() - interval '10 seconds';

-- newest_id --
-- The newest id that was drawn, or is there all the same.
SELECT greatest(last_value - (NOT is_called)::int, (SELECT max(id) FROM outbox)) FROM outbox_id_seq;

-- adopt_alone --
-- One adoption at a time, whatever the relay: each reads how far the sequences are and raises them.
SELECT pg_advisory_xact_lock(
    hashtextextended('outbox-streams adopt', 'outbox'::regclass::oid::bigint));

-- skip_ids --
-- The next id drawn is the one after this, or a later one: never back.  The business draws
-- meanwhile, so a sequence that is nearly there must not be set: what is left is drawn.  It may be
-- set where nobody draws as much between the look and the act.
SELECT CASE WHEN %(newest)s - drawn > 100000 THEN setval('outbox_id_seq', %(newest)s)
            WHEN %(newest)s > drawn
            THEN (SELECT max(nextval('outbox_id_seq'))
                  FROM generate_series(drawn + 1, %(newest)s))
            ELSE drawn END
FROM (SELECT last_value - (NOT is_called)::int AS drawn FROM outbox_id_seq) AS ids;

-- skip_drawn --
-- What our sequences draw next is above what is in use, where a copy of the rows came without them:
-- never back, as skip_ids. No index knows the highest place in line: every state is read once.
WITH states AS (
    SELECT max(arrived) AS arrived, max(applied) AS applied
    FROM (
        SELECT max(arrived) AS arrived, max(applied) AS applied FROM outbox_state
        UNION ALL
        SELECT max(arrived), max(applied) FROM outbox_foreign
    ) AS ours_and_others
)
SELECT CASE WHEN highest - last > 100000 THEN setval(name::regclass, highest)
            ELSE (SELECT max(place)
                  FROM (SELECT nextval(name::regclass) AS place
                        FROM generate_series(last + 1, highest)) AS places) END
FROM (
    SELECT 'outbox_arrived', arrived FROM states
    UNION ALL
    SELECT 'outbox_applied', applied FROM states
    UNION ALL
    SELECT 'outbox_died', max(died) FROM outbox_dead_letters
    UNION ALL
    SELECT pg_get_serial_sequence('outbox_actions', 'id'), max(id) FROM outbox_actions
    UNION ALL
    SELECT pg_get_serial_sequence('outbox_audits', 'id'), max(id) FROM outbox_audits
    UNION ALL
    SELECT pg_get_serial_sequence('outbox_operations', 'id'), max(id) FROM outbox_operations
    UNION ALL
    SELECT pg_get_serial_sequence('outbox_rejects', 'id'), max(id) FROM outbox_rejects
) AS used (name, highest)
CROSS JOIN LATERAL (SELECT coalesce(pg_sequence_last_value(name::regclass), 0) AS last) AS drawn
WHERE last < highest;

-- relay_adopt --
-- From now on this relay publishes from this database; a log position of another one means nothing
-- here.
UPDATE relay_position
SET identity = outbox_identity(), floor = %(floor)s, lsn = NULL, publication = NULL
WHERE name = %(relay)s;

-- relay_raise_beat --
-- This database counts on from here, past what Kafka knows.
INSERT INTO relay_position (name, mode, beat)
VALUES (%(relay)s, 'poll', %(beat)s)
ON CONFLICT (name) DO UPDATE SET beat = greatest(relay_position.beat, excluded.beat);

-- relay_hold --
-- For this transaction nobody leads this relay, if nobody does now; in an earlier release neither.
SELECT pg_try_advisory_xact_lock(
           hashtextextended('outbox-streams relay ' || %(relay)s, 'outbox'::regclass::oid::bigint))
   AND pg_try_advisory_xact_lock_shared(
           hashtextextended('outbox-streams relay ' || %(relay)s, 0))
   AND pg_try_advisory_xact_lock_shared(
           hashtextextended('outbox-streams relays join ' || %(relay)s, 0));

-- outbox_pins --
-- Transactions that hold the floor, and so the sweep and retention, for longer than so many
-- seconds: a session's, by pid, or a prepared one, by gid.  Of sessions that this role may not look
-- into nothing is known.
SELECT DISTINCT l.pid, p.gid, a.state, nullif(a.application_name, ''),
                coalesce(p.prepared, a.xact_start) AS since
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a USING (pid)
LEFT JOIN pg_locks AS own
    ON l.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
      AND own.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts AS p ON p.transaction = own.transactionid
WHERE l.locktype = 'relation'
  AND l.mode = 'RowExclusiveLock'
  AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.relation = 'outbox'::regclass
       OR l.relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox'::regclass))
  AND coalesce(p.prepared, a.xact_start) < now() - %(seconds)s * interval '1 second'
ORDER BY since;
