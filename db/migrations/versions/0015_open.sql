-- What of outbox_state is open, in one small table without partitions.  The states are the truth; triggers keep this like
-- them, whoever writes them.  Lock order: a message's state, then its row here.
CREATE TABLE outbox_open (
    outbox_id  bigint PRIMARY KEY,
    topic      text NOT NULL,
    key        text,
    arrived    bigint,
    source_id  bigint,
    due        timestamptz,
    since      timestamptz NOT NULL,
    partition  integer,
    attempts   integer NOT NULL,
    status     text NOT NULL,
    error_code text
) WITH (
    -- Rows come and go: what is gone has to be swept before it is waded through.
    fillfactor = 70, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX outbox_open_line ON outbox_open (topic, key, arrived);

-- Its tables are ours, whatever the caller's search_path is.  Planned once: our sessions plan each execution anew, and this is one for each row.
DO $$
DECLARE
    schema text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'outbox'::regclass);
BEGIN
    EXECUTE format($make$
        CREATE FUNCTION %1$s.outbox_open_put() RETURNS trigger
        LANGUAGE plpgsql SET search_path = %1$s, pg_temp SET plan_cache_mode = force_generic_plan AS $body$
        BEGIN
            INSERT INTO outbox_open
                   (outbox_id, topic, key, arrived, source_id, due, since, partition, attempts, status, error_code)
            VALUES (NEW.outbox_id, NEW.topic, NEW.key, NEW.arrived, NEW.source_id, NEW.next_retry_at, NEW.updated_at,
                    NEW.partition, NEW.attempts, NEW.status, NEW.error_code)
            ON CONFLICT (outbox_id) DO UPDATE
            SET topic = excluded.topic, key = excluded.key, arrived = excluded.arrived, source_id = excluded.source_id,
                due = excluded.due, since = excluded.since, partition = excluded.partition, attempts = excluded.attempts,
                status = excluded.status, error_code = excluded.error_code;
            RETURN NULL;
        END
        $body$;

        CREATE FUNCTION %1$s.outbox_open_drop() RETURNS trigger
        LANGUAGE plpgsql SET search_path = %1$s, pg_temp SET plan_cache_mode = force_generic_plan AS $body$
        BEGIN
            DELETE FROM outbox_open WHERE outbox_id = OLD.outbox_id;
            RETURN NULL;
        END
        $body$;
    $make$, schema);
END
$$;

-- Whoever wrote a state before the triggers has committed when this lock is had, and nobody writes one until they are there.
LOCK TABLE outbox_state IN SHARE ROW EXCLUSIVE MODE;

CREATE TRIGGER outbox_open_insert AFTER INSERT ON outbox_state
FOR EACH ROW WHEN (NEW.topic IS NOT NULL) EXECUTE FUNCTION outbox_open_put();

CREATE TRIGGER outbox_open_update AFTER UPDATE ON outbox_state
FOR EACH ROW WHEN (NEW.topic IS NOT NULL) EXECUTE FUNCTION outbox_open_put();

CREATE TRIGGER outbox_open_settle AFTER UPDATE ON outbox_state
FOR EACH ROW WHEN (OLD.topic IS NOT NULL AND NEW.topic IS NULL) EXECUTE FUNCTION outbox_open_drop();

CREATE TRIGGER outbox_open_delete AFTER DELETE ON outbox_state
FOR EACH ROW WHEN (OLD.topic IS NOT NULL) EXECUTE FUNCTION outbox_open_drop();

INSERT INTO outbox_open (outbox_id, topic, key, arrived, source_id, due, since, partition, attempts, status, error_code)
SELECT outbox_id, topic, key, arrived, source_id, next_retry_at, updated_at, partition, attempts, status, error_code
FROM outbox_state
WHERE topic IS NOT NULL;

-- Whoever may write states may write what is open of them, as the triggers do it as the writer; whoever reads, reads.
DO $$
DECLARE
    held record;
BEGIN
    FOR held IN
        SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS role,
               acl.privilege_type = 'SELECT' AS reads
        FROM pg_class
        CROSS JOIN LATERAL aclexplode(relacl) AS acl
        WHERE oid = 'outbox_state'::regclass AND acl.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
          AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT%s ON outbox_open TO %s',
                       CASE WHEN held.reads THEN '' ELSE ', INSERT, UPDATE, DELETE' END, held.role);
    END LOOP;
END
$$;
