-- Ranges of ids whose messages are gone but for what was not settled: what is in one of them and
-- has no row is old.
-- `tables` are its partitions, until they are dropped.
CREATE TABLE outbox_retired (
    first_id   bigint PRIMARY KEY,
    last_id    bigint NOT NULL,
    messages   bigint NOT NULL,
    kept       bigint NOT NULL,
    tables     text[] NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    dropped_at timestamptz
);

ALTER TABLE relay_position ADD retention jsonb;

DO $$
DECLARE
    grantee text;
BEGIN
    -- Whoever reads the outbox has to know what is gone from it.
    FOR grantee IN
        SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC'
                             ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class
        CROSS JOIN LATERAL aclexplode(relacl) AS acl
        WHERE oid = 'outbox_state'::regclass AND acl.privilege_type = 'SELECT'
          AND acl.grantee <> relowner
    LOOP
        EXECUTE format('GRANT SELECT ON outbox_retired TO %s', grantee);
    END LOOP;
END
$$;
