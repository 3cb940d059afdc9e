-- emptying_lock --
-- Until the end of this transaction no audit runs: a snapshot of before sees the range without
-- what is put back.  An audit of an earlier release has the old lock of audits alone.
SELECT pg_try_advisory_xact_lock(
           hashtextextended('outbox-streams emptying', 'outbox'::regclass::oid::bigint))
   AND pg_try_advisory_xact_lock_shared(hashtextextended('outbox-streams auditing', 0));

-- emptying_wait --
-- No range is emptied from now on; waits for the one that is.  A process of an earlier release
-- holds the old lock of retention alone while it empties.
SELECT pg_advisory_lock_shared(
           hashtextextended('outbox-streams emptying', 'outbox'::regclass::oid::bigint)),
       pg_advisory_lock_shared(hashtextextended('outbox-streams retention', 0));

-- emptying_go_on --
-- Ranges may be emptied.
SELECT pg_advisory_unlock_shared(
           hashtextextended('outbox-streams emptying', 'outbox'::regclass::oid::bigint)),
       pg_advisory_unlock_shared(hashtextextended('outbox-streams retention', 0));

-- retention_right --
-- The role that owns the outbox, whether this role is one of its members, this role, and the
-- server's clock.
SELECT pg_get_userbyid(relowner), pg_has_role(relowner, 'MEMBER'), current_user,
       extract(epoch FROM clock_timestamp())::double precision
FROM pg_class
WHERE oid = 'outbox'::regclass;

-- retention_role --
-- From now on this session acts as that role.
SELECT set_config('role', %(role)s, false);

-- retention_ranges --
-- Partitions whose ids are all at or below the floor of every relay, or the others, in pairs, the
-- oldest first, with what is known of each.
SELECT p.first_id, p.last_id, p.schema, p.tables, p.bytes, r.messages, r.kept
FROM (
    SELECT (bounds[1])::bigint AS first_id, (bounds[2])::bigint - 1 AS last_id,
           (SELECT nspname FROM pg_namespace WHERE oid = child.relnamespace)::text AS schema,
           array_agg(child.relname::text ORDER BY inhparent = 'outbox_state'::regclass) AS tables,
           sum(pg_total_relation_size(child.oid))::bigint AS bytes
    FROM pg_inherits
    JOIN pg_class AS child ON child.oid = inhrelid
    CROSS JOIN LATERAL regexp_match(
        pg_get_expr(child.relpartbound, child.oid), $$\('(-?\d+)'\) TO \('(-?\d+)'\)$$) AS bounds
    WHERE inhparent IN ('outbox'::regclass, 'outbox_state'::regclass) AND NOT inhdetachpending
    GROUP BY 1, 2, 3
    HAVING count(*) = 2
) AS p
LEFT JOIN outbox_retired AS r USING (first_id)
WHERE (p.last_id > (SELECT coalesce(min(floor), 0) FROM relay_position)) = %(above)s
ORDER BY p.first_id;

-- slowest_relay --
-- The relay with the lowest floor, which is what everything else goes by.
SELECT name, floor FROM relay_position ORDER BY floor, name LIMIT 1;

-- range_written --
-- For how many seconds the last row of a range of ids is there, NULL when it is infinite or of
-- tomorrow, which says nothing; and its id.
SELECT CASE WHEN created_at BETWEEN '1970-01-01' AND (now() AT TIME ZONE 'UTC') + interval '1 day'
            THEN extract(epoch FROM (now() AT TIME ZONE 'UTC') - created_at) END::double precision,
       id
FROM outbox
WHERE id BETWEEN %(first)s AND %(last)s
ORDER BY id DESC
LIMIT 1;

-- range_proof --
-- What is in a range of ids: rows, messages, messages without a fate, and states that contradict
-- the rest; and for how many seconds the youngest row is there, NULL when none says so: one row
-- that is infinite, or of tomorrow, or of long ago, says nothing about the others.
SELECT count(o.id), count(*) FILTER (WHERE o.resend_of IS NULL AND o.id IS NOT NULL),
       count(*) FILTER (WHERE o.resend_of IS NULL AND s.outbox_id IS NULL),
       count(*) FILTER (WHERE s.outbox_id IS NOT NULL
                          AND (o.id IS NULL
                               OR s.topic IS NULL
                                  AND s.status IN ('retrying', 'parked', 'replaying'))),
       extract(epoch FROM (now() AT TIME ZONE 'UTC') - max(o.created_at) FILTER (
           WHERE o.created_at BETWEEN '1970-01-01'
                                  AND (now() AT TIME ZONE 'UTC') + interval '1 day'
       ))::double precision
FROM (SELECT id, resend_of, created_at FROM outbox WHERE id BETWEEN %(first)s AND %(last)s) AS o
FULL JOIN (
    SELECT outbox_id, status, topic FROM outbox_state WHERE outbox_id BETWEEN %(first)s AND %(last)s
) AS s ON s.outbox_id = o.id;

-- range_unsettled --
-- Messages of a range that are not settled, by the small indexes.
SELECT outbox_id
FROM outbox_state
WHERE outbox_id BETWEEN %(first)s AND %(last)s AND status = 'dead'
UNION
SELECT outbox_id FROM outbox_open WHERE outbox_id BETWEEN %(first)s AND %(last)s;

-- range_counts --
-- How many rows and states are in a range of ids, now that nobody else can write there.
SELECT (SELECT count(*) FROM outbox WHERE id BETWEEN %(first)s AND %(last)s),
       (SELECT count(*) FROM outbox_state WHERE outbox_id BETWEEN %(first)s AND %(last)s);

-- range_open --
-- Messages of a range that are not settled, by their states alone; and whether outbox_open says
-- that one of the others is.
SELECT outbox_id, false
FROM outbox_state
WHERE outbox_id BETWEEN %(first)s AND %(last)s AND status NOT IN ('consumed', 'discarded')
UNION ALL
SELECT o.outbox_id, true
FROM outbox_open AS o
WHERE o.outbox_id BETWEEN %(first)s AND %(last)s
  AND NOT EXISTS (
      SELECT FROM outbox_state AS s
      WHERE s.outbox_id BETWEEN %(first)s AND %(last)s AND s.outbox_id = o.outbox_id
        AND s.status NOT IN ('consumed', 'discarded'));

-- range_roots --
-- Messages that rows of a range send again.
SELECT DISTINCT resend_of
FROM outbox
WHERE id BETWEEN %(first)s AND %(last)s AND resend_of IS NOT NULL;

-- unsettled --
-- Those of these messages that are not settled; one without a fate is none that is gone, if it
-- has its row.
SELECT outbox_id
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]) AND status NOT IN ('consumed', 'discarded')
UNION ALL
SELECT o.id
FROM (SELECT id FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS o
LEFT JOIN (
    SELECT outbox_id FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]) OFFSET 0
) AS s ON s.outbox_id = o.id
WHERE s.outbox_id IS NULL;

-- range_needed --
-- Rows of unsettled messages, and what sends an unsettled one again.
SELECT id
FROM outbox
WHERE id BETWEEN %(first)s AND %(last)s
  AND (id = ANY(%(ids)s::bigint[]) OR resend_of = ANY(%(roots)s::bigint[]));

-- retain_rows --
-- Rows of a range that somebody may still need: unsettled messages, and what sends an unsettled
-- one again.
CREATE TEMP TABLE retained_rows ON COMMIT DROP AS
SELECT *
FROM outbox
WHERE id BETWEEN %(first)s AND %(last)s
  AND (id = ANY(%(ids)s::bigint[]) OR resend_of = ANY(%(roots)s::bigint[]));

-- retain_states --
-- States of a range that are not settled.
CREATE TEMP TABLE retained_states ON COMMIT DROP AS
SELECT *
FROM outbox_state
WHERE outbox_id BETWEEN %(first)s AND %(last)s AND outbox_id = ANY(%(ids)s::bigint[]);

-- retained --
-- How many rows and states are left.
SELECT (SELECT count(*) FROM retained_rows), (SELECT count(*) FROM retained_states);

-- forget_letters --
-- Dead letters of a range whose states are gone; there are none, unless somebody wrote states
-- without triggers.
DELETE FROM outbox_dead_letters
WHERE source = '' AND outbox_id BETWEEN %(first)s AND %(last)s
  AND outbox_id <> ALL(%(ids)s::bigint[]);

-- restore_rows --
-- Back to where they were: what was published once is published once more, and no relay sends it.
INSERT INTO outbox (id, biz_type, topic, key, payload, traceparent, resend_of, created_at)
OVERRIDING SYSTEM VALUE
SELECT id, biz_type, topic, key, payload, traceparent, resend_of, created_at
FROM retained_rows
ORDER BY id;

-- restore_states --
-- Back to where they were.
INSERT INTO outbox_state (outbox_id, "offset", applied, updated_at, partition, attempts, replays,
                          status, arrived, source_id,
                          next_retry_at, topic, key, error_code, error)
SELECT outbox_id, "offset", applied, updated_at, partition, attempts, replays,
       status, arrived, source_id,
       next_retry_at, topic, key, error_code, error
FROM retained_states
ORDER BY outbox_id;

-- note_retired --
-- This range was emptied, but for so many rows.
INSERT INTO outbox_retired (first_id, last_id, messages, kept, tables, archived)
VALUES (%(first)s, %(last)s, %(messages)s, %(kept)s, %(tables)s, %(archived)s)
ON CONFLICT (first_id) DO UPDATE SET kept = excluded.kept, at = now(), archived = excluded.archived;

-- archived_so_far --
-- Whether the range that was emptied last went to an archive; an earlier release does not say.
SELECT archived <> '' FROM outbox_retired WHERE archived IS NOT NULL ORDER BY at DESC LIMIT 1;

-- retired_after --
-- Ranges that were emptied, of ids after this one.
SELECT first_id, last_id FROM outbox_retired WHERE last_id > %(after)s ORDER BY first_id;

-- retired_among --
-- Those of these ids that are in a range that was emptied: without a row they are old.
SELECT given.id
FROM unnest(%(ids)s::bigint[]) AS given (id)
WHERE EXISTS (SELECT FROM outbox_retired AS r WHERE given.id BETWEEN r.first_id AND r.last_id);

-- to_drop --
-- Ranges in which nothing is left, with their partitions: whether each is there, attached, and
-- pending to be detached.
SELECT r.first_id, r.last_id, parent.name, tables.name,
       (SELECT nspname FROM pg_namespace WHERE oid = c.relnamespace)::text, i.inhrelid IS NOT NULL,
       coalesce(i.inhdetachpending, false)
FROM outbox_retired AS r
CROSS JOIN LATERAL unnest(r.tables) WITH ORDINALITY AS tables (name, position)
JOIN unnest(ARRAY['outbox', 'outbox_state']) WITH ORDINALITY AS parent (name, position)
     USING (position)
LEFT JOIN pg_class AS c
       ON c.relname = tables.name
      AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
WHERE r.dropped_at IS NULL AND r.kept = 0
ORDER BY r.first_id, position;

-- note_dropped --
-- The partitions of this range are gone.
UPDATE outbox_retired SET dropped_at = now() WHERE first_id = %(first)s;

-- holders --
-- Who holds these tables.
SELECT DISTINCT ON (l.pid) l.pid,
       CASE WHEN l.pid IS NULL THEN 'prepared transaction'
            ELSE coalesce(nullif(a.application_name, ''), a.backend_type, 'of another role') END,
       a.state, false AS snapshot
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ANY(%(tables)s::regclass[])
LIMIT 5;

-- detach_holders --
-- Whom a detach waits for, the oldest first: whoever holds the parents, or has a snapshot of this
-- database.  A vacuum's does not count, and a prepared transaction has no end of its own.
SELECT pid, name, state, bool_or(snapshot)
FROM (
    SELECT l.pid, CASE WHEN l.pid IS NULL THEN 'prepared transaction'
                       ELSE coalesce(nullif(a.application_name, ''), a.backend_type,
                                     'of another role') END AS name,
           a.state, false AS snapshot, coalesce(a.xact_start, '-infinity') AS since
    FROM pg_locks AS l
    LEFT JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.relation IN ('outbox'::regclass, 'outbox_state'::regclass)
    UNION ALL
    SELECT pid, coalesce(nullif(application_name, ''), backend_type), state, true, xact_start
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()
) AS holders
WHERE pid IS NULL OR pid NOT IN (
    SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'
    UNION ALL
    SELECT pid FROM pg_stat_progress_vacuum
)
GROUP BY pid, name, state
ORDER BY min(since)
LIMIT 3;

-- save_retention --
-- What holds retention up, if that is known anew, and that it was done now, for `streams status`.
UPDATE relay_position
SET retention = jsonb_build_object(
        'waits', coalesce(%(waits)s::jsonb, retention -> 'waits', '[]'), 'at', now())
WHERE name = %(relay)s;

-- dead_for_long --
-- Messages of a range that are dead for longer than so many seconds.
SELECT outbox_id
FROM outbox_state
WHERE outbox_id BETWEEN %(first)s AND %(last)s AND status = 'dead'
  AND updated_at < now() - %(seconds)s * interval '1 second'
ORDER BY outbox_id
LIMIT %(most)s;

-- foreign_dead_for_long --
-- Messages of other systems that are dead for longer than so many seconds, behind one of them.
SELECT source, outbox_id
FROM outbox_foreign
WHERE status = 'dead' AND (source, outbox_id) > (%(source)s, %(after)s)
  AND updated_at < now() - %(seconds)s * interval '1 second'
ORDER BY source, outbox_id
LIMIT %(most)s;

-- expire_rejects --
-- Some of what was rejected longer than so many seconds ago.
DELETE FROM outbox_rejects
WHERE id IN (
    SELECT id FROM outbox_rejects
    WHERE at < now() - %(seconds)s * interval '1 second'
    ORDER BY id
    LIMIT %(most)s);

-- expire_actions --
-- Some of what operators did longer than so many seconds ago.
DELETE FROM outbox_actions
WHERE id IN (
    SELECT id FROM outbox_actions
    WHERE at < now() - %(seconds)s * interval '1 second'
    ORDER BY id
    LIMIT %(most)s);

-- expire_operation_items --
-- Some messages of bulk acts that ended longer than so many seconds ago, or went no further.
DELETE FROM outbox_operation_items
WHERE (operation, position) IN (
    SELECT i.operation, i.position
    FROM outbox_operations AS o
    JOIN outbox_operation_items AS i ON i.operation = o.id
    WHERE o.state <> 'running'
      AND coalesce(o.ended_at, o.stepped_at, o.created_at)
          < now() - %(seconds)s * interval '1 second'
    LIMIT %(most)s);

-- expire_operations --
-- Some bulk acts that ended longer than so many seconds ago, or went no further, without messages.
DELETE FROM outbox_operations
WHERE id IN (
    SELECT id FROM outbox_operations AS o
    WHERE state <> 'running'
      AND coalesce(ended_at, stepped_at, created_at) < now() - %(seconds)s * interval '1 second'
      AND NOT EXISTS (SELECT FROM outbox_operation_items WHERE operation = o.id)
    ORDER BY id
    LIMIT %(most)s);

-- expired_waiting --
-- Tables whose oldest row is older than its period by a day and more.
SELECT name
FROM (VALUES ('outbox_rejects', (SELECT at FROM outbox_rejects ORDER BY id LIMIT 1),
              %(rejects)s::double precision),
             ('outbox_actions', (SELECT at FROM outbox_actions ORDER BY id LIMIT 1), %(actions)s),
             ('outbox_audits', (SELECT at FROM outbox_audits ORDER BY id LIMIT 1), %(audits)s)
     ) AS oldest (name, at, days)
WHERE at < now() - (days + 1) * interval '1 day';

-- expire_audits --
-- Some reports of audits longer than so many seconds ago.
DELETE FROM outbox_audits
WHERE id IN (
    SELECT id FROM outbox_audits
    WHERE at < now() - %(seconds)s * interval '1 second'
    ORDER BY id
    LIMIT %(most)s);

-- expire_foreign --
-- Some of another system's messages that were settled longer than so many seconds ago: a record
-- of one is persisted anew.
DELETE FROM outbox_foreign
WHERE (source, outbox_id) IN (
    SELECT source, outbox_id FROM outbox_foreign
    WHERE status IN ('consumed', 'discarded') AND NOT open
      AND updated_at < now() - %(seconds)s * interval '1 second'
    ORDER BY source, outbox_id
    LIMIT %(most)s);

-- expire_crashes --
-- Notes on messages that nobody tried for longer than so many seconds.
DELETE FROM outbox_message_crashes WHERE updated_at < now() - %(seconds)s * interval '1 second';

-- expire_run_crashes --
-- What workers of the version before noted of runs, longer than so many seconds ago.
DELETE FROM outbox_run_crashes WHERE updated_at < now() - %(seconds)s * interval '1 second';

-- expire_direct --
-- Some ids of messages that their callers wrote themselves, of ranges that nobody looks at any
-- more.
DELETE FROM outbox_direct
WHERE outbox_id IN (
    SELECT outbox_id FROM outbox_direct
    WHERE EXISTS (SELECT FROM outbox_retired AS r WHERE outbox_id BETWEEN r.first_id AND r.last_id)
    ORDER BY outbox_id
    LIMIT %(most)s);

-- expire_audit_ranges --
-- What audits remember of ranges that are gone, but for the last one: the next audit goes on
-- from it.
DELETE FROM outbox_audit_ranges AS a
WHERE EXISTS (
    SELECT FROM outbox_retired AS r WHERE a.first_id >= r.first_id AND a.last_id <= r.last_id)
  AND first_id < (SELECT max(first_id) FROM outbox_audit_ranges);
