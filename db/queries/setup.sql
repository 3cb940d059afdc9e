-- register_biz_type --
-- outbox_enqueue() looks topic, limit and key field up here, a relay what the topic has to be like.
INSERT INTO outbox_biz_types (biz_type, topic, max_bytes, partitions, replication_factor,
                              retention_hours, key_field)
VALUES (%(biz_type)s, %(topic)s, %(max_bytes)s, %(partitions)s, %(replication_factor)s,
        %(retention_hours)s, %(key_field)s)
ON CONFLICT (biz_type) DO UPDATE
SET topic = excluded.topic, max_bytes = excluded.max_bytes, partitions = excluded.partitions,
    replication_factor = excluded.replication_factor, retention_hours = excluded.retention_hours,
    key_field = excluded.key_field;

-- add_biz_type --
-- What a process that starts knows; what somebody registered stays: it may be of a newer version
-- than this one.
INSERT INTO outbox_biz_types AS t
       (biz_type, topic, max_bytes, partitions, replication_factor, retention_hours, key_field)
VALUES (%(biz_type)s, %(topic)s, %(max_bytes)s, %(partitions)s, %(replication_factor)s,
        %(retention_hours)s, %(key_field)s)
ON CONFLICT (biz_type) DO UPDATE
SET partitions = coalesce(t.partitions, excluded.partitions),
    replication_factor = coalesce(t.replication_factor, excluded.replication_factor),
    retention_hours = coalesce(t.retention_hours, excluded.retention_hours),
    key_field = coalesce(t.key_field, excluded.key_field)
WHERE t.topic = excluded.topic AND (t.partitions IS NULL OR t.key_field IS NULL);

-- biz_types --
-- What is registered, and how many messages wait for a worker that knows it.
SELECT t.biz_type, t.topic, t.max_bytes, t.partitions, t.replication_factor, t.retention_hours,
       t.key_field, t.retired_at,
       (SELECT count(*)
        FROM outbox_state AS s
        JOIN outbox AS o ON o.id = s.outbox_id
        WHERE s.topic IS NOT NULL AND s.status = 'retrying' AND s.error_code = 'biz_type'
          AND o.biz_type = t.biz_type)
       + (SELECT count(*)
          FROM outbox_foreign AS f
          WHERE f.open AND f.status = 'retrying' AND f.error_code = 'biz_type'
            AND f.biz_type = t.biz_type) AS waiting
FROM outbox_biz_types AS t
ORDER BY t.biz_type;

-- retire_biz_type --
-- Nobody may enqueue it any more; with `retire` false they may again.
UPDATE outbox_biz_types
SET retired_at = CASE WHEN %(retire)s THEN coalesce(retired_at, now()) END
WHERE biz_type = %(biz_type)s
RETURNING biz_type;

-- give_up_waiting --
-- Messages that wait for a worker that knows this biz_type wait no longer: their workers look when
-- an act was noted.
WITH ours AS (
    UPDATE outbox_state AS s
    SET next_retry_at = now()
    FROM outbox AS o
    WHERE o.id = s.outbox_id AND o.biz_type = %(biz_type)s
      AND s.topic IS NOT NULL AND s.status = 'retrying' AND s.error_code = 'biz_type'
    RETURNING 1
), others AS (
    UPDATE outbox_foreign
    SET next_retry_at = now()
    WHERE open AND status = 'retrying' AND error_code = 'biz_type' AND biz_type = %(biz_type)s
    RETURNING 1
)
SELECT (SELECT count(*) FROM ours) + (SELECT count(*) FROM others);

-- wait_on --
-- Messages of this biz_type that were given up, and that no worker has looked at since, wait anew.
WITH ours AS (
    UPDATE outbox_state AS s
    SET next_retry_at = now() + %(seconds)s * interval '1 second'
    FROM outbox AS o
    WHERE o.id = s.outbox_id AND o.biz_type = %(biz_type)s AND s.next_retry_at <= now()
      AND s.topic IS NOT NULL AND s.status = 'retrying' AND s.error_code = 'biz_type'
    RETURNING 1
), others AS (
    UPDATE outbox_foreign
    SET next_retry_at = now() + %(foreign)s * interval '1 second'
    WHERE open AND status = 'retrying' AND error_code = 'biz_type' AND biz_type = %(biz_type)s
      AND next_retry_at <= now()
    RETURNING 1
)
SELECT (SELECT count(*) FROM ours) + (SELECT count(*) FROM others);

-- unknown_biz_types --
-- Messages that wait for a worker that knows their biz_type, by biz_type: how many, since when, and
-- until when the first.
SELECT biz_type, count(*), min(since), min(until)
FROM (
    SELECT o.biz_type, s.updated_at AS since, s.next_retry_at AS until
    FROM outbox_state AS s
    JOIN outbox AS o ON o.id = s.outbox_id
    WHERE s.topic IS NOT NULL AND s.status = 'retrying' AND s.error_code = 'biz_type'
    UNION ALL
    SELECT biz_type, updated_at, next_retry_at
    FROM outbox_foreign
    WHERE open AND status = 'retrying' AND error_code = 'biz_type'
) AS waiting
GROUP BY biz_type
ORDER BY biz_type;

-- unserved_biz_types --
-- Registered biz_types that this process neither knows nor reads, with their topics; `open` when
-- messages of it wait here.
SELECT t.biz_type, t.topic,
       EXISTS (SELECT FROM outbox_open AS s WHERE s.topic = t.topic)
       OR EXISTS (
           SELECT
           FROM (
               SELECT o.biz_type
               FROM outbox AS o
               WHERE o.id > (SELECT coalesce(max(floor), 0) FROM relay_position)
               ORDER BY o.id
               LIMIT 10000
           ) AS newest
           WHERE newest.biz_type = t.biz_type
       ) AS open
FROM outbox_biz_types AS t
WHERE t.retired_at IS NULL AND t.biz_type <> ALL(%(known)s::text[])
  AND t.topic <> ALL(%(consumed)s::text[])
ORDER BY t.biz_type;

-- sequence_at_fault --
-- A sequence of ours that does not draw as we rely on: one by one, upwards, each once. Of ids, and
-- of the order in which messages wait, were persisted, and died.
SELECT seqrelid::regclass::text, seqcache, seqincrement, seqcycle
FROM pg_sequence
WHERE seqrelid IN ('outbox_id_seq'::regclass, 'outbox_arrived'::regclass,
                   'outbox_applied'::regclass, 'outbox_died'::regclass)
  AND (seqcache, seqincrement, seqcycle) IS DISTINCT FROM (1, 1, false)
ORDER BY seqrelid
LIMIT 1;

-- hidden_tables --
-- Tables of ours that this role works with, and of which policies hide rows from it.
SELECT coalesce(string_agg(relname, ', ' ORDER BY relname), '')
FROM pg_class
WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
  AND relname = ANY(%(tables)s::text[]) AND relrowsecurity AND row_security_active(oid)
  AND has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE');

-- tables_elsewhere --
-- Tables that the search_path finds in another schema than its first, where ours are; and where.
SELECT relname, nspname
FROM unnest(%(tables)s::text[]) WITH ORDINALITY AS given (name, place)
JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(given.name))
JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE nspname IS DISTINCT FROM current_schema()
ORDER BY place
LIMIT 1;

-- partition_lock --
-- Two relays, or a relay and a migration, never make the same partition.
SELECT pg_advisory_xact_lock(%(key)s);

-- as_owner --
-- Until this transaction ends whoever owns the outbox: a partition that another role makes would be
-- that role's.
SELECT set_config('role', pg_get_userbyid(relowner), true)
FROM pg_class
WHERE oid = 'outbox'::regclass AND pg_get_userbyid(relowner) <> current_user;

-- made_by_another --
-- What this transaction made or changed in the outbox's schema that is not its owner's, as the
-- statements that make it so: nobody else could attach a partition later.
WITH given AS (
    SELECT relowner AS owner, relnamespace AS namespace,
           quote_ident(pg_get_userbyid(relowner)) AS name,
           mod(pg_current_xact_id()::text::numeric, 4294967296)::text AS here
    FROM pg_class WHERE oid = 'outbox'::regclass
)
SELECT 'ALTER ' || CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END
       || ' ' || c.oid::regclass || ' OWNER TO ' || given.name
FROM pg_class AS c, given
WHERE relnamespace = namespace AND relowner <> owner AND c.xmin::text = here
  AND relkind IN ('r', 'p', 'v', 'S')
  -- A column's own sequence goes with its table.
  AND NOT EXISTS (SELECT FROM pg_depend AS d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
UNION ALL
SELECT 'ALTER ROUTINE ' || p.oid::regprocedure || ' OWNER TO ' || given.name
FROM pg_proc AS p, given
WHERE pronamespace = namespace AND proowner <> owner AND p.xmin::text = here;

-- partition_bounds --
-- Which ids have a home already.
SELECT parent.relname, pg_get_expr(child.relpartbound, child.oid)
FROM pg_inherits
JOIN pg_class AS parent ON parent.oid = inhparent
JOIN pg_class AS child ON child.oid = inhrelid
WHERE inhparent IN ('outbox'::regclass, 'outbox_state'::regclass);

-- recent_rows --
-- How many ids were drawn of late, and since how many seconds: at least 300, a burst is no rate.
-- A row that is infinite or of a time to come does not say.
SELECT newest.id - older.id,
       greatest(300, extract(epoch FROM (now() AT TIME ZONE 'UTC')
                                        - older.created_at))::double precision
FROM (SELECT id FROM outbox WHERE id BETWEEN %(last)s - 1000000 AND %(last)s ORDER BY id DESC
      LIMIT 1) AS newest
CROSS JOIN (
    SELECT id, created_at FROM outbox
    WHERE id BETWEEN %(last)s - 1000000 AND %(last)s
      AND created_at BETWEEN '1970-01-01' AND now() AT TIME ZONE 'UTC'
    ORDER BY id
    LIMIT 1
) AS older;

-- last_id --
-- The newest id that was drawn, committed or not.
SELECT last_value - (NOT is_called)::int FROM outbox_id_seq;

-- sampled_id --
-- The same, to raise a floor towards; none while sessions may keep ids for later: a smaller one
-- would be written afterwards.
SELECT last_value - (NOT is_called)::int
FROM outbox_id_seq
WHERE EXISTS (
    SELECT FROM pg_sequence
    WHERE seqrelid = 'outbox_id_seq'::regclass AND seqcache = 1 AND seqincrement = 1
      AND NOT seqcycle
);

-- lock_patience --
-- Each lock of this transaction is waited for so long.
SELECT set_config('lock_timeout', %(milliseconds)s, true);

-- blockers --
-- Whom a session waits for, the oldest transaction first.  What other roles do may be hidden, but
-- for pid and name; pid 0 is a prepared transaction.
SELECT b.pid, coalesce(nullif(a.application_name, ''), a.backend_type), a.xact_start,
       (SELECT min(l.virtualtransaction) FROM pg_locks AS l WHERE l.pid = b.pid)
FROM (SELECT DISTINCT unnest(pg_blocking_pids(%(pid)s))) AS b (pid)
LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
ORDER BY a.xact_start NULLS LAST, b.pid;

-- transactions_open --
-- Any of these virtual transactions that has not ended.
SELECT virtualtransaction
FROM pg_locks
WHERE virtualtransaction = ANY(%(transactions)s::text[])
LIMIT 1;
