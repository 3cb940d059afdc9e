-- What tells this database from every other one: the server's system identifier, the database, and the table outbox.  A
-- dump that is restored anywhere has another one; a failover to a standby keeps it.
CREATE FUNCTION outbox_identity() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                     (SELECT oid FROM pg_database WHERE datname = current_database()), 'outbox'::regclass::oid)
$$;

-- What changes whenever this publication does, or what it holds of the outbox; null when there is none.  Rows committed
-- while it was another one were skipped by whoever read the log, with no more than a warning in the server's log.
CREATE FUNCTION outbox_publication(name text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT concat_ws('/', p.oid, p.xmin, r.oid, r.xmin)
    FROM pg_publication AS p
    LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid AND r.prrelid = 'outbox'::regclass
    WHERE p.pubname = outbox_publication.name
$$;

-- identity: of the database this relay published from.  asked: the mode its leader was started with.  wish: the mode an
-- operator asked for later.  doing and reason: what its leader does now, and why.  rate: rows a second.
-- publication: as it was while everything before lsn was read.
ALTER TABLE relay_position
    ADD COLUMN identity text,
    ADD COLUMN asked    text,
    ADD COLUMN wish     text CONSTRAINT relay_position_wish CHECK (wish IN ('cdc', 'poll', 'debezium')),
    ADD COLUMN doing    text,
    ADD COLUMN reason   text,
    ADD COLUMN rate     double precision,
    ADD COLUMN publication text;
