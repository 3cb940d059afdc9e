-- One statement for a service in any language, inside its own transaction.  Everything it refuses is SQLSTATE 22023; what
-- is no JSON (22P02), or nested too deep to be read as JSON (54001), the server refuses while it makes the argument.
CREATE OR REPLACE FUNCTION outbox_enqueue(biz_type text, key text, payload json) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    target outbox_biz_types%ROWTYPE;
    id     bigint;
BEGIN
    SELECT * INTO target FROM outbox_biz_types AS t WHERE t.biz_type = outbox_enqueue.biz_type;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'unknown biz_type %: expected one of %; `streams migrate` registers new ones', quote_nullable(biz_type),
            coalesce((SELECT string_agg(t.biz_type, ', ' ORDER BY t.biz_type) FROM outbox_biz_types AS t), '(none)')
            USING ERRCODE = '22023';
    END IF;
    IF target.retired_at IS NOT NULL THEN
        RAISE EXCEPTION 'biz_type % is retired since %', quote_literal(biz_type), target.retired_at
            USING ERRCODE = '22023';
    END IF;
    IF key IS NULL OR octet_length(key) NOT BETWEEN 1 AND 1024 THEN
        RAISE EXCEPTION '%: key has % bytes, expected 1 to 1024', biz_type, coalesce(octet_length(key), 0)
            USING ERRCODE = '22023';
    END IF;
    IF payload IS NULL OR json_typeof(payload) <> 'object' THEN
        RAISE EXCEPTION '%: payload is %, expected a JSON object', biz_type, coalesce(json_typeof(payload), 'null')
            USING ERRCODE = '22023';
    END IF;
    IF octet_length(payload::text) > target.max_bytes THEN
        RAISE EXCEPTION '%: payload has % bytes, expected at most %', biz_type, octet_length(payload::text),
            target.max_bytes USING ERRCODE = '22023';
    END IF;
    BEGIN
        -- json keeps a NUL or a lone surrogate as text; jsonb, like every text column, cannot hold one.
        PERFORM payload::jsonb;
    EXCEPTION
        WHEN untranslatable_character THEN
            RAISE EXCEPTION '%: payload holds a NUL character (\u0000), which text cannot hold', biz_type
                USING ERRCODE = '22023';
        WHEN invalid_text_representation THEN
            RAISE EXCEPTION '%: payload holds a lone surrogate, which is no character', biz_type
                USING ERRCODE = '22023';
        WHEN numeric_value_out_of_range THEN
            RAISE EXCEPTION '%: payload holds a number out of range', biz_type USING ERRCODE = '22023';
        WHEN statement_too_complex THEN
            RAISE EXCEPTION '%: payload is nested too deep', biz_type USING ERRCODE = '22023';
    END;
    -- As text they nearly always are the same.  Of keys only how long they are: what a user wrote may be in them.
    IF target.key_field IS NOT NULL
       AND (payload -> target.key_field)::text IS DISTINCT FROM to_json(key)::text
       AND outbox_key_fits(payload, target.key_field, key) IS NOT TRUE THEN
        RAISE EXCEPTION '%: key (% bytes) is not what field % of the payload says (%): expected the same', biz_type,
            octet_length(key), quote_literal(target.key_field),
            CASE json_typeof(payload -> target.key_field)
                WHEN 'string' THEN concat(octet_length(payload ->> target.key_field), ' bytes')
                ELSE coalesce(json_typeof(payload -> target.key_field), 'absent')
            END
            USING ERRCODE = '22023';
    END IF;
    INSERT INTO outbox (biz_type, topic, key, payload)
    VALUES (target.biz_type, target.topic, outbox_enqueue.key, outbox_enqueue.payload)
    RETURNING outbox.id INTO id;
    RETURN id;
END
$$;

-- Replaced, a function loses what was set for it: its tables are ours, whatever the caller's search_path is.
DO $$
DECLARE
    schema text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'outbox'::regclass);
BEGIN
    EXECUTE format('ALTER FUNCTION %s.outbox_enqueue(text, text, json) SET search_path = %s, pg_temp', schema, schema);
END
$$;

-- Drivers and libraries bind a payload as the type that they think it has: text, varchar, or jsonb.  Bound to the function
-- above when they are made, these mean it whatever the search_path is.
CREATE FUNCTION outbox_enqueue(biz_type text, key text, payload text) RETURNS bigint
LANGUAGE sql RETURN outbox_enqueue(biz_type, key, payload::json);

CREATE FUNCTION outbox_enqueue(biz_type text, key text, payload jsonb) RETURNS bigint
LANGUAGE sql RETURN outbox_enqueue(biz_type, key, payload::text::json);
