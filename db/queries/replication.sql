-- publication --
-- The publication as it is: what it publishes, and whether it holds the outbox, whole, through its
-- root.
SELECT pubinsert AS inserts, pubupdate OR pubdelete OR pubtruncate AS others,
       pubviaroot AS via_root, puballtables OR EXISTS (
           SELECT FROM pg_publication_rel
           WHERE prpubid = p.oid AND prrelid = to_regclass('outbox') AND prqual IS NULL
             AND prattrs IS NULL
       ) AS has_outbox,
       puballtables OR EXISTS (
           SELECT FROM pg_publication_rel
           WHERE prpubid = p.oid AND prrelid IS DISTINCT FROM to_regclass('outbox')
       ) OR EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = p.oid) AS other_tables,
       (SELECT min(relnamespace::regnamespace::text)
        FROM pg_publication_rel
        JOIN pg_class AS c ON c.oid = prrelid
        WHERE prpubid = p.oid AND relname = 'outbox'
          AND prrelid IS DISTINCT FROM to_regclass('outbox')) AS other_outbox
FROM pg_publication AS p
WHERE pubname = %(publication)s;

-- slot --
-- The slot as it is: wal_status 'lost' means it can never be read again; `held` bytes of WAL are
-- kept for it.
SELECT plugin, database = current_database() AS here, active_pid, wal_status,
       confirmed_flush_lsn::text AS confirmed,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::bigint AS held, safe_wal_size,
       (to_jsonb(s) ->> 'failover')::boolean AS failover
FROM pg_replication_slots AS s
WHERE slot_name = %(slot)s;

-- slot_database --
-- Whose the slot is: a database's, or nobody's, which is physical replication.
SELECT database FROM pg_replication_slots WHERE slot_name = %(slot)s;

-- other_outboxes --
-- Schemas of this database with an outbox of their own, of whose relays this role may know.
SELECT nspname
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE relname = 'relay_position' AND relkind = 'r' AND relnamespace <> (
          SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
  AND EXISTS (SELECT FROM pg_class AS v
              WHERE v.relnamespace = c.relnamespace AND v.relname = 'outbox_streams_version')
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
ORDER BY nspname;

-- slot_reader --
-- Who reads the slot, as far as this role may know.
SELECT s.active_pid, coalesce(a.application_name, '')
FROM pg_replication_slots AS s
LEFT JOIN pg_stat_activity AS a ON a.pid = s.active_pid
WHERE s.slot_name = %(slot)s;

-- create_slot --
-- Two migrations at once: the advisory lock makes the second find it.
SELECT pg_create_logical_replication_slot(%(slot)s, 'pgoutput');

-- create_failover_slot --
-- PostgreSQL 17 and newer: standbys may keep it too, and synchronized_standby_slots holds it back
-- for them.
SELECT pg_create_logical_replication_slot(%(slot)s, 'pgoutput', failover => true);

-- slot_begins --
-- Before the first message is enqueued a new slot misses none: where it begins, everything is
-- published.
INSERT INTO relay_position (name, mode, lsn, publication)
SELECT slot_name, 'cdc', confirmed_flush_lsn, outbox_publication(%(publication)s)
FROM pg_replication_slots
WHERE slot_name = %(slot)s
  AND NOT EXISTS (SELECT FROM outbox)
ON CONFLICT (name) DO UPDATE
SET lsn = excluded.lsn, publication = excluded.publication
WHERE relay_position.leader IS NULL;

-- drop_slot --
-- It holds back WAL that nobody will read.
SELECT pg_drop_replication_slot(%(slot)s);

-- relay_wish --
-- The mode an operator asked for.
SELECT wish FROM relay_position WHERE name = %(relay)s;
