-- As whoever registered a biz_type makes its topic; NULL until a migration or a worker of this version filled it in.
-- `retired_at`: nobody may enqueue it any more, and what still arrives without a worker that knows it is dead at once.
ALTER TABLE outbox_biz_types
    ADD COLUMN partitions integer,
    ADD COLUMN replication_factor integer,
    ADD COLUMN retention_hours integer,
    ADD COLUMN retired_at timestamptz;

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
        RAISE EXCEPTION 'unknown biz_type %: expected one of %', quote_nullable(biz_type),
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
    INSERT INTO outbox (biz_type, topic, key, payload)
    VALUES (target.biz_type, target.topic, outbox_enqueue.key, outbox_enqueue.payload)
    RETURNING outbox.id INTO id;
    RETURN id;
END
$$;
