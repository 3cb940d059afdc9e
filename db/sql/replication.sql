-- publication --
-- The publication as it is: what it publishes, and whether it holds the outbox, whole, through its root.
SELECT pubinsert AS inserts, pubupdate OR pubdelete OR pubtruncate AS others, pubviaroot AS via_root,
       puballtables OR EXISTS (
           SELECT FROM pg_publication_rel
           WHERE prpubid = p.oid AND prrelid = to_regclass('outbox') AND prqual IS NULL AND prattrs IS NULL
       ) AS has_outbox,
       puballtables OR EXISTS (
           SELECT FROM pg_publication_rel WHERE prpubid = p.oid AND prrelid IS DISTINCT FROM to_regclass('outbox')
       ) OR EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = p.oid) AS other_tables
FROM pg_publication AS p
WHERE pubname = %(publication)s;

-- slot --
-- The slot as it is; wal_status 'lost' means it can never be read again.
SELECT plugin, database = current_database() AS here, active_pid, wal_status, confirmed_flush_lsn::text AS confirmed
FROM pg_replication_slots
WHERE slot_name = %(slot)s;

-- create_slot --
-- Two migrations at once: the advisory lock makes the second find it.
SELECT pg_create_logical_replication_slot(%(slot)s, 'pgoutput');
