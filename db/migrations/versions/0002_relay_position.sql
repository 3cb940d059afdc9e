-- What tells this database from every other one: the server's system identifier, the database, and the table outbox.  A
-- dump that is restored anywhere has another one; a failover to a standby keeps it.
CREATE FUNCTION outbox_identity() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                     (SELECT oid FROM pg_database WHERE datname = current_database()), 'outbox'::regclass::oid)
$$;

-- identity: of the database this relay published from.  asked: the mode its leader was started with.  wish: the mode an
-- operator asked for later.  doing and reason: what its leader does now, and why.  rate: rows a second.
ALTER TABLE relay_position
    ADD COLUMN identity text,
    ADD COLUMN asked    text,
    ADD COLUMN wish     text CONSTRAINT relay_position_wish CHECK (wish IN ('cdc', 'poll', 'debezium')),
    ADD COLUMN doing    text,
    ADD COLUMN reason   text,
    ADD COLUMN rate     double precision;
