-- replication_role --
-- Whether this role may stream, as far as the catalog says.
SELECT current_user, rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user;

-- outbox_writers --
-- Who holds the lock an INSERT takes before it draws an id, on the root or on a partition.  A virtual transaction keeps
-- its name through PREPARE TRANSACTION, when the pid is gone; after a restart of the server it is -1/xid.
SELECT DISTINCT virtualtransaction
FROM pg_locks
WHERE locktype = 'relation'
  AND mode = 'RowExclusiveLock'
  AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (relation = 'outbox'::regclass
       OR relation IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox'::regclass));

-- insert_lsn --
-- Where the next WAL record goes; pg_current_wal_lsn() lags behind commits under synchronous_commit=off.
SELECT pg_current_wal_insert_lsn()::text;

-- save_relay_position --
-- What this leader knows; the floor never moves back.
INSERT INTO relay_position (name, mode, floor, lsn, leader, pid, heartbeat)
VALUES (%(name)s, %(mode)s, %(floor)s, %(lsn)s, %(leader)s, %(pid)s, now())
ON CONFLICT (name) DO UPDATE
SET mode = excluded.mode,
    floor = greatest(relay_position.floor, excluded.floor),
    lsn = excluded.lsn,
    leader = excluded.leader,
    pid = excluded.pid,
    heartbeat = excluded.heartbeat;

-- bury_unpublishable --
-- No record can carry this row; whatever fate it has already stays.
INSERT INTO outbox_state (outbox_id, status, attempts, error_code, error)
VALUES (%(outbox_id)s, 'dead', 0, 'unpublishable', %(reason)s)
ON CONFLICT (outbox_id) DO NOTHING;
