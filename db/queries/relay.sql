-- replication_role --
-- Whether this role may stream, as far as the catalog says.
SELECT current_user, rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user;

-- outbox_writers --
-- Who holds the lock an INSERT takes before it draws an id, on the root or on a partition.  A
-- virtual transaction keeps its name through PREPARE TRANSACTION, when the pid is gone; after a
-- restart of the server it is -1/xid.
SELECT DISTINCT virtualtransaction
FROM pg_locks
WHERE locktype = 'relation'
  AND mode = 'RowExclusiveLock'
  AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (relation = 'outbox'::regclass
       OR relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox'::regclass));

-- insert_lsn --
-- Where the next WAL record goes; pg_current_wal_lsn() lags behind commits under
-- synchronous_commit=off.
SELECT pg_current_wal_insert_lsn()::text;

-- save_relay_position --
-- What this leader knows; floor and position never move back, and never into another database's
-- row.  Whoever reads the log knows only what was read while the publication was as it is now.
INSERT INTO relay_position (name, mode, floor, lsn, leader, pid, heartbeat, identity, asked, doing,
                            reason, rate, publication, beat)
VALUES (%(name)s, %(mode)s, %(floor)s, %(lsn)s, %(leader)s, %(pid)s, now(), outbox_identity(),
        %(asked)s, %(doing)s,
        %(reason)s, %(rate)s, %(mark)s, CASE WHEN %(beats)s THEN 1 END)
ON CONFLICT (name) DO UPDATE
SET mode = excluded.mode,
    floor = greatest(relay_position.floor, excluded.floor),
    lsn = greatest(relay_position.lsn, excluded.lsn),
    leader = excluded.leader,
    pid = excluded.pid,
    heartbeat = excluded.heartbeat,
    identity = excluded.identity,
    asked = excluded.asked,
    doing = excluded.doing,
    reason = excluded.reason,
    rate = excluded.rate,
    publication = coalesce(excluded.publication, relay_position.publication),
    beat = CASE WHEN %(beats)s THEN coalesce(relay_position.beat, 0) + 1
                ELSE relay_position.beat END
WHERE coalesce(relay_position.identity, excluded.identity) = excluded.identity
  AND (%(mark)s::text IS NULL OR %(mark)s = outbox_publication(%(publication)s))
RETURNING beat, identity;

-- beats --
-- How often the leader of each relay has counted here, and which database this is; one row without
-- a name when there is none.
SELECT p.name, p.beat, d.identity
FROM (SELECT outbox_identity() AS identity) AS d
LEFT JOIN relay_position AS p ON true;

-- durable_session --
-- A beat that Kafka knows must survive a crash, whatever the role's transactions wait for.
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off';

-- relay_saved --
-- What was saved last of this relay, and the database as it is.
SELECT coalesce(p.floor, 0), p.lsn::text, p.leader IS NOT NULL, p.mode, p.asked, p.wish, p.identity,
       outbox_identity(),
       (SELECT last_value - (NOT is_called)::int FROM outbox_id_seq), p.publication,
       outbox_publication(%(publication)s)
FROM (VALUES (true)) AS always
LEFT JOIN relay_position AS p ON p.name = %(relay)s;

-- relay_healed --
-- Everything committed before this log position is with the broker: the slot that begins there may
-- be read, as long as the publication is this one.
UPDATE relay_position
SET lsn = %(lsn)s, publication = %(mark)s
WHERE name = %(relay)s;

-- bury_unpublishable --
-- No record can carry this row.  Its message is dead, if it has no fate yet or waits for this very
-- row to be published; any other fate stays: what is retrying or parked is worked from its outbox
-- row, a resend only wakes its worker.  A message that is open holds its conversation on, if its
-- agent wants that.
INSERT INTO outbox_state AS s (outbox_id, status, attempts, error_code, error)
VALUES (%(outbox_id)s, 'dead', 0, 'unpublishable', %(reason)s)
ON CONFLICT (outbox_id) DO UPDATE
SET status = 'dead', error_code = excluded.error_code, error = excluded.error, next_retry_at = NULL,
    updated_at = now(),
    topic = CASE WHEN %(hold)s THEN s.topic END, key = CASE WHEN %(hold)s THEN s.key END
WHERE s.status = 'replaying' AND s.source_id = %(row_id)s;

-- relay_keep_out --
-- Relays of an earlier release that share the work take the old lock together: none of them joins
-- from now on, false while one does.
SELECT pg_try_advisory_lock_shared(hashtextextended('outbox-streams relays join ' || %(name)s, 0));

-- relay_let_in --
-- They may join.
SELECT pg_advisory_unlock_shared(hashtextextended('outbox-streams relays join ' || %(name)s, 0));

-- relays_earlier --
-- How many relays of an earlier release share the work: they hold the old lock together, and are
-- seen in no outbox's lock of attendance.
SELECT count(DISTINCT l.pid)
FROM pg_locks AS l
WHERE l.locktype = 'advisory' AND l.mode = 'ShareLock' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint)
      = hashtextextended('outbox-streams relay ' || %(name)s, 0)
  AND l.pid <> pg_backend_pid()
  AND NOT EXISTS (
      SELECT FROM pg_locks AS own
      JOIN pg_class AS c ON relname = 'outbox'
      WHERE own.pid = l.pid AND own.locktype = 'advisory' AND own.granted
        AND own.objsubid = 1 AND own.database = l.database
        AND (own.classid::bigint << 32 | own.objid::bigint)
            = hashtextextended('outbox-streams relays ' || %(name)s, c.oid::bigint));

-- relay_attend --
-- Whoever leads this relay name or stands by for it holds this lock, so that it can be seen.
SELECT pg_advisory_lock_shared(
    hashtextextended('outbox-streams relays ' || %(name)s, 'outbox'::regclass::oid::bigint));

-- relay_floor --
-- The floor that was saved last.
SELECT coalesce((SELECT floor FROM relay_position WHERE name = %(relay)s), 0);

-- raise_floor --
-- What a relay that polls has confirmed, when it ends.
UPDATE relay_position
SET floor = %(floor)s
WHERE name = %(relay)s
  AND floor < %(floor)s;

-- outbox_schema --
-- The schema that the outbox is in.
SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'outbox'::regclass;

-- make_durable --
-- Whatever is visible now survives a crash once this is true: the commit of a row's lock flushes
-- everything before it, and a logical message would be everybody's who reads this database's log.
-- NULL while the relay has no row to lock.
SELECT CASE
           WHEN pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()
           THEN (SELECT true FROM relay_position WHERE name = %(relay)s FOR KEY SHARE)
           ELSE true
       END;

-- poll_newer --
-- Everything visible beyond the newest id that was read.
SELECT topic, key, payload, created_at, id, biz_type, traceparent, resend_of
FROM outbox
WHERE id > %(newest)s
ORDER BY id
LIMIT %(most)s;

-- poll_gaps --
-- Everything visible in the gaps that were left, each given by its first and last id.
SELECT o.topic, o.key, o.payload, o.created_at, o.id, o.biz_type, o.traceparent, o.resend_of
FROM unnest(%(lows)s::bigint[], %(highs)s::bigint[]) AS gap (low, high)
JOIN outbox AS o ON o.id BETWEEN gap.low AND gap.high AND o.id BETWEEN %(first)s AND %(last)s
ORDER BY o.id
LIMIT %(most)s;

-- topic_shape --
-- How the topic of a registered biz_type has to be made, as far as whoever registered it has said.
SELECT biz_type, partitions, replication_factor, retention_hours
FROM outbox_biz_types
WHERE topic = %(topic)s AND retired_at IS NULL
ORDER BY partitions NULLS LAST, biz_type
LIMIT 1;

-- open_churns --
-- Whether so many rows of outbox_open are gone that it has to be swept, and this role may: else the
-- server does it in its time.
SELECT pg_stat_get_dead_tuples(oid) > 1000 AND pg_has_role(relowner, 'USAGE')
FROM pg_class
WHERE oid = 'outbox_open'::regclass;

-- vacuum_open --
-- Behind an old snapshot it finds nothing to remove; what holds the table is not waited for.
VACUUM (SKIP_LOCKED, TRUNCATE FALSE) outbox_open;
