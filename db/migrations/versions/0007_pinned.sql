-- A body after RETURN is bound when it is made, and calls it without a word of the caller's search_path.
CREATE OR REPLACE FUNCTION outbox_identity() RETURNS text
LANGUAGE sql STABLE
RETURN concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                 (SELECT oid FROM pg_database WHERE datname = current_database()), 'outbox'::regclass::oid);

CREATE OR REPLACE FUNCTION outbox_publication(name text) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT concat_ws('/', p.oid, p.xmin, r.oid, r.xmin)
    FROM pg_publication AS p
    LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid AND r.prrelid = 'outbox'::regclass
    WHERE p.pubname = outbox_publication.name
);

CREATE OR REPLACE FUNCTION outbox_shard(key text, shards integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((hashtextextended(key, 0) & 9223372036854775807) % shards)::integer;

CREATE OR REPLACE FUNCTION outbox_fingerprint(biz_type text, error_code text, error text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(md5(concat_ws(E'\x1f', biz_type, error_code, regexp_replace(coalesce(error, ''), '[0-9]+', '#', 'g'))), 8);

-- plpgsql looks names up when it runs.
DO $$
DECLARE
    schema text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'outbox'::regclass);
BEGIN
    EXECUTE format('ALTER FUNCTION %s.outbox_enqueue(text, text, json) SET search_path = %s, pg_temp', schema, schema);
    EXECUTE format('ALTER FUNCTION %s.outbox_notify() SET search_path = %s, pg_temp', schema, schema);
END
$$;
