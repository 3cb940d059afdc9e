-- lock_alone --
-- Take this lock of this outbox for this session, if nobody has it.  Another outbox in the database
-- has locks of the same names, and a number of its own.  An earlier release knows the old number
-- only, which is of the name alone, and takes it alone: who shares that keeps it out, and not
-- another outbox.
SELECT CASE WHEN NOT pg_try_advisory_lock(own) THEN false
            WHEN pg_try_advisory_lock_shared(old) THEN true
            ELSE NOT pg_advisory_unlock(own) END
FROM (SELECT hashtextextended(%(lock)s::text, 'outbox'::regclass::oid::bigint) AS own,
             hashtextextended(%(lock)s::text, 0) AS old) AS numbers;

-- lock_give --
-- Somebody else may take it.
SELECT pg_advisory_unlock(own), pg_advisory_unlock_shared(old)
FROM (SELECT hashtextextended(%(lock)s::text, 'outbox'::regclass::oid::bigint) AS own,
             hashtextextended(%(lock)s::text, 0) AS old) AS numbers;

-- lock_shared --
-- Take it for this session beside others who do so, if nobody has it alone, in an earlier release
-- neither.
SELECT CASE WHEN NOT pg_try_advisory_lock_shared(own) THEN false
            WHEN pg_try_advisory_lock_shared(old) THEN true
            ELSE NOT pg_advisory_unlock_shared(own) END
FROM (SELECT hashtextextended(%(lock)s::text, 'outbox'::regclass::oid::bigint) AS own,
             hashtextextended(%(lock)s::text, 0) AS old) AS numbers;

-- lock_in_turn --
-- Wait for it, until the end of this transaction.
SELECT pg_advisory_xact_lock(own), pg_advisory_xact_lock_shared(old)
FROM (SELECT hashtextextended(%(lock)s::text, 'outbox'::regclass::oid::bigint) AS own,
             hashtextextended(%(lock)s::text, 0) AS old) AS numbers;

-- lock_holder --
-- Who has this lock alone: its process and how it calls itself.  One of an earlier release holds
-- the old one.
SELECT l.pid, a.application_name
FROM pg_locks AS l
JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint)
      IN (hashtextextended(%(lock)s::text, 'outbox'::regclass::oid::bigint),
          hashtextextended(%(lock)s::text, 0));
