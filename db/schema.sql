-- What the migrations make, partitions left out.  Written by `make schema`, compared by a test.

CREATE FUNCTION public.outbox_enqueue(biz_type text, key text, payload json) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.outbox_enqueue(biz_type text, key text, payload jsonb) RETURNS bigint
    LANGUAGE sql
    RETURN public.outbox_enqueue(biz_type, key, ((payload)::text)::json);

CREATE FUNCTION public.outbox_enqueue(biz_type text, key text, payload text) RETURNS bigint
    LANGUAGE sql
    RETURN public.outbox_enqueue(biz_type, key, (payload)::json);

CREATE FUNCTION public.outbox_fingerprint(biz_type text, error_code text, error text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN "left"(md5(concat_ws(''::text, biz_type, error_code, regexp_replace(COALESCE(error, ''::text), '[0-9]+'::text, '#'::text, 'g'::text))), 8);

CREATE FUNCTION public.outbox_foreign_opened() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'public', 'pg_temp'
    AS $$
        BEGIN
            NEW.opened := CASE WHEN NEW.open THEN NEW.updated_at END;
            RETURN NEW;
        END
        $$;

CREATE FUNCTION public.outbox_forget_dead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
BEGIN
    IF TG_TABLE_NAME = 'outbox_foreign' THEN
        DELETE FROM outbox_dead_letters WHERE source = OLD.source AND outbox_id = OLD.outbox_id;
    ELSE
        DELETE FROM outbox_dead_letters WHERE source = '' AND outbox_id = OLD.outbox_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TABLE public.outbox (
    id bigint NOT NULL,
    biz_type text NOT NULL,
    topic text NOT NULL,
    key text NOT NULL,
    payload json NOT NULL,
    traceparent text,
    resend_of bigint,
    created_at timestamp(3) without time zone DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'::text) NOT NULL,
    CONSTRAINT outbox_key_length CHECK (((octet_length(key) >= 1) AND (octet_length(key) <= 1024))),
    CONSTRAINT outbox_topic_length CHECK (((octet_length(topic) >= 1) AND (octet_length(topic) <= 249)))
)
PARTITION BY RANGE (id);

CREATE FUNCTION public.outbox_identity() RETURNS text
    LANGUAGE sql STABLE
    RETURN concat_ws('/'::text, (SELECT pg_control_system.system_identifier FROM pg_control_system() pg_control_system(pg_control_version, catalog_version_no, system_identifier, pg_control_last_modified)), (SELECT pg_database.oid FROM pg_database WHERE (pg_database.datname = current_database())), ('public.outbox'::regclass)::oid);

CREATE FUNCTION public.outbox_key_fits(payload json, field text, key text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    held json;
BEGIN
    BEGIN
        held := payload -> field;
    EXCEPTION
        WHEN data_exception OR statement_too_complex THEN
            RETURN NULL;
    END;
    IF held IS NULL OR json_typeof(held) = 'null' THEN
        RETURN false;
    END IF;
    CASE json_typeof(held)
        WHEN 'string' THEN RETURN (held #>> '{}') = key;
        WHEN 'number', 'boolean' THEN RETURN held::text = key OR held::jsonb::text = key;
        ELSE RETURN held::jsonb = key::jsonb;
    END CASE;
EXCEPTION
    WHEN data_exception OR statement_too_complex THEN
        RETURN false;
END
$$;

CREATE FUNCTION public.outbox_note_dead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET plan_cache_mode TO 'force_custom_plan'
    SET search_path TO 'public', 'pg_temp'
    AS $$
DECLARE
    root record;
BEGIN
    IF TG_TABLE_NAME = 'outbox_foreign' THEN
        INSERT INTO outbox_dead_letters (source, outbox_id, topic, key, biz_type, error_code, fingerprint, died_at, held)
        VALUES (NEW.source, NEW.outbox_id, NEW.topic, NEW.key, NEW.biz_type, NEW.error_code,
                outbox_fingerprint(NEW.biz_type, NEW.error_code, NEW.error), NEW.updated_at, NEW.open)
        ON CONFLICT (source, outbox_id) DO UPDATE
        SET topic = excluded.topic, key = excluded.key, biz_type = excluded.biz_type, error_code = excluded.error_code,
            fingerprint = excluded.fingerprint, held = excluded.held;
    ELSE
        SELECT o.biz_type, o.topic, o.key INTO root FROM outbox AS o WHERE o.id = NEW.outbox_id;
        INSERT INTO outbox_dead_letters (source, outbox_id, topic, key, biz_type, error_code, fingerprint, died_at, held)
        VALUES ('', NEW.outbox_id, root.topic, root.key, root.biz_type, NEW.error_code,
                outbox_fingerprint(root.biz_type, NEW.error_code, NEW.error), NEW.updated_at, NEW.topic IS NOT NULL)
        ON CONFLICT (source, outbox_id) DO UPDATE
        SET topic = excluded.topic, key = excluded.key, biz_type = excluded.biz_type, error_code = excluded.error_code,
            fingerprint = excluded.fingerprint, held = excluded.held;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.outbox_notify() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'public', 'pg_temp'
    AS $$
BEGIN
    NOTIFY outbox_streams;
    RETURN NULL;
END
$$;

CREATE FUNCTION public.outbox_open_drop() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'public', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
        BEGIN
            DELETE FROM outbox_open WHERE outbox_id = OLD.outbox_id;
            RETURN NULL;
        END
        $$;

CREATE FUNCTION public.outbox_open_put() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'public', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
        BEGIN
            INSERT INTO outbox_open
                   (outbox_id, topic, key, arrived, source_id, due, since, partition, attempts, status, error_code, opened)
            VALUES (NEW.outbox_id, NEW.topic, NEW.key, NEW.arrived, NEW.source_id, NEW.next_retry_at, NEW.updated_at,
                    NEW.partition, NEW.attempts, NEW.status, NEW.error_code, NEW.updated_at)
            ON CONFLICT (outbox_id) DO UPDATE
            SET topic = excluded.topic, key = excluded.key, arrived = excluded.arrived, source_id = excluded.source_id,
                due = excluded.due, since = excluded.since, partition = excluded.partition, attempts = excluded.attempts,
                status = excluded.status, error_code = excluded.error_code;
            RETURN NULL;
        END
        $$;

CREATE FUNCTION public.outbox_publication(name text) RETURNS text
    LANGUAGE sql STABLE
    RETURN (SELECT concat_ws('/'::text, p.oid, p.xmin, r.oid, r.xmin) AS concat_ws FROM (pg_publication p LEFT JOIN pg_publication_rel r ON (((r.prpubid = p.oid) AND (r.prrelid = ('public.outbox'::regclass)::oid)))) WHERE (p.pubname = outbox_publication.name));

CREATE FUNCTION public.outbox_shard(key text, shards integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (((hashtextextended(key, (0)::bigint) & '9223372036854775807'::bigint) % (shards)::bigint))::integer;

CREATE TABLE public.agent_chats (
    user_id bigint NOT NULL,
    chat_id text NOT NULL,
    message_count bigint NOT NULL,
    last_message_at timestamp(3) without time zone NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE public.chat_histories (
    id bigint NOT NULL,
    source text DEFAULT ''::text NOT NULL,
    outbox_id bigint NOT NULL,
    user_id bigint NOT NULL,
    chat_id text NOT NULL,
    role text NOT NULL,
    message_content text NOT NULL,
    reasoning_content text,
    reasoning_duration_seconds bigint,
    retry_group_id text,
    retry_index bigint,
    retry_from_user_message_id bigint,
    retry_from_assistant_message_id bigint,
    tokens_consumed bigint,
    created_at timestamp(3) without time zone NOT NULL
);

ALTER TABLE public.chat_histories ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.chat_histories_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.outbox_actions (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    who text NOT NULL,
    act text NOT NULL,
    outbox_id bigint,
    what jsonb DEFAULT '{}'::jsonb NOT NULL,
    why text
);

ALTER TABLE public.outbox_actions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_actions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE SEQUENCE public.outbox_applied
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE SEQUENCE public.outbox_arrived
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE public.outbox_audit_left (
    outbox_id bigint NOT NULL
);

CREATE TABLE public.outbox_audit_ranges (
    first_id bigint NOT NULL,
    last_id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    reach jsonb NOT NULL
);

CREATE TABLE public.outbox_audits (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    seconds double precision NOT NULL,
    complete boolean NOT NULL,
    messages bigint NOT NULL,
    wrong bigint NOT NULL,
    report jsonb NOT NULL
);

ALTER TABLE public.outbox_audits ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_audits_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.outbox_biz_types (
    biz_type text NOT NULL,
    topic text NOT NULL,
    max_bytes integer NOT NULL,
    partitions integer,
    replication_factor integer,
    retention_hours integer,
    retired_at timestamp with time zone,
    key_field text
);

CREATE TABLE public.outbox_foreign (
    source text NOT NULL,
    outbox_id bigint NOT NULL,
    "offset" bigint,
    applied bigint,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    created_at timestamp(3) without time zone,
    partition integer,
    attempts integer DEFAULT 0 NOT NULL,
    replays smallint DEFAULT 0 NOT NULL,
    open boolean DEFAULT false NOT NULL,
    status text NOT NULL,
    arrived bigint,
    next_retry_at timestamp with time zone,
    biz_type text,
    topic text,
    key text,
    error_code text,
    error text,
    payload text,
    replaced text,
    opened timestamp with time zone,
    CONSTRAINT outbox_foreign_error_length CHECK ((length(error) <= 2000)),
    CONSTRAINT outbox_foreign_source CHECK ((source <> ''::text)),
    CONSTRAINT outbox_foreign_status CHECK ((status = ANY (ARRAY['retrying'::text, 'parked'::text, 'consumed'::text, 'dead'::text, 'discarded'::text])))
);

CREATE TABLE public.outbox_state (
    outbox_id bigint NOT NULL,
    "offset" bigint,
    applied bigint,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    partition integer,
    attempts integer DEFAULT 0 NOT NULL,
    replays smallint DEFAULT 0 NOT NULL,
    status text NOT NULL,
    arrived bigint,
    source_id bigint,
    next_retry_at timestamp with time zone,
    topic text,
    key text,
    error_code text,
    error text,
    CONSTRAINT outbox_state_error_length CHECK ((length(error) <= 2000)),
    CONSTRAINT outbox_state_status CHECK ((status = ANY (ARRAY['retrying'::text, 'parked'::text, 'replaying'::text, 'consumed'::text, 'dead'::text, 'discarded'::text])))
)
PARTITION BY RANGE (outbox_id);

CREATE VIEW public.outbox_dead AS
 SELECT s.outbox_id,
    o.biz_type,
    o.topic,
    o.key,
    s.attempts,
    s.replays,
    s.error_code,
    s.error,
    public.outbox_fingerprint(o.biz_type, s.error_code, s.error) AS fingerprint,
    (s.topic IS NOT NULL) AS held,
    s.updated_at AS since,
    s.arrived,
    s.partition,
    s."offset",
    ''::text AS source,
    (s.outbox_id)::text AS name
   FROM (public.outbox_state s
     JOIN public.outbox o ON ((o.id = s.outbox_id)))
  WHERE (s.status = 'dead'::text)
UNION ALL
 SELECT f.outbox_id,
    f.biz_type,
    f.topic,
    f.key,
    f.attempts,
    f.replays,
    f.error_code,
    f.error,
    public.outbox_fingerprint(f.biz_type, f.error_code, f.error) AS fingerprint,
    f.open AS held,
    f.updated_at AS since,
    f.arrived,
    f.partition,
    f."offset",
    f.source,
    ((f.source || ':'::text) || f.outbox_id) AS name
   FROM public.outbox_foreign f
  WHERE (f.status = 'dead'::text);

CREATE TABLE public.outbox_dead_letters (
    source text NOT NULL,
    outbox_id bigint NOT NULL,
    topic text,
    key text,
    biz_type text,
    error_code text,
    fingerprint text NOT NULL,
    died bigint NOT NULL,
    died_at timestamp with time zone DEFAULT now() NOT NULL,
    held boolean DEFAULT false NOT NULL,
    died_in bigint DEFAULT ((pg_current_xact_id())::text)::bigint
);

CREATE SEQUENCE public.outbox_died
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.outbox_died OWNED BY public.outbox_dead_letters.died;

CREATE TABLE public.outbox_direct (
    outbox_id bigint NOT NULL
);

CREATE TABLE public.outbox_gauges (
    width integer NOT NULL,
    bucket timestamp with time zone NOT NULL,
    name text NOT NULL,
    label text DEFAULT ''::text NOT NULL,
    value double precision NOT NULL,
    highest double precision NOT NULL
);

ALTER TABLE public.outbox ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.outbox_lag (
    "group" text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text,
    committed bigint,
    end_offset bigint,
    log_start bigint,
    worked timestamp with time zone,
    moved timestamp with time zone DEFAULT now() NOT NULL,
    at timestamp with time zone NOT NULL
);

CREATE TABLE public.outbox_message_crashes (
    topic text NOT NULL,
    outbox_id bigint NOT NULL,
    partition integer NOT NULL,
    crashes integer NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.relay_position (
    name text NOT NULL,
    mode text NOT NULL,
    floor bigint DEFAULT 0 NOT NULL,
    lsn pg_lsn,
    leader text,
    pid integer,
    heartbeat timestamp with time zone,
    identity text,
    asked text,
    wish text,
    doing text,
    reason text,
    rate double precision,
    publication text,
    beat bigint,
    retention jsonb,
    CONSTRAINT relay_position_wish CHECK ((wish = ANY (ARRAY['cdc'::text, 'poll'::text, 'debezium'::text])))
);

CREATE VIEW public.outbox_messages AS
 SELECT o.id AS outbox_id,
    o.biz_type,
    o.topic,
    o.key,
    o.payload,
    o.traceparent,
    o.created_at,
    COALESCE(s.status,
        CASE
            WHEN (o.id <= r.floor) THEN 'published'::text
            ELSE 'pending'::text
        END) AS status,
    s.attempts,
    s.error_code,
    s.error,
    s.next_retry_at,
    s.partition,
    s."offset",
    s.applied,
    s.updated_at
   FROM ((public.outbox o
     LEFT JOIN public.outbox_state s ON ((s.outbox_id = o.id)))
     CROSS JOIN ( SELECT COALESCE(max(relay_position.floor), (0)::bigint) AS floor
           FROM public.relay_position) r)
  WHERE (o.resend_of IS NULL);

CREATE TABLE public.outbox_open (
    outbox_id bigint NOT NULL,
    topic text NOT NULL,
    key text,
    arrived bigint,
    source_id bigint,
    due timestamp with time zone,
    since timestamp with time zone NOT NULL,
    partition integer,
    attempts integer NOT NULL,
    status text NOT NULL,
    error_code text,
    opened timestamp with time zone DEFAULT now() NOT NULL
)
WITH (fillfactor='70', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_cost_delay='0');

CREATE TABLE public.outbox_operation_items (
    operation bigint NOT NULL,
    "position" bigint NOT NULL,
    source text DEFAULT ''::text NOT NULL,
    outbox_id bigint NOT NULL,
    outcome text DEFAULT 'waiting'::text NOT NULL,
    resend bigint,
    at timestamp with time zone
);

CREATE TABLE public.outbox_operations (
    id bigint NOT NULL,
    act text NOT NULL,
    who text NOT NULL,
    why text,
    filter jsonb DEFAULT '{}'::jsonb NOT NULL,
    force boolean DEFAULT false NOT NULL,
    rate double precision,
    through bigint NOT NULL,
    hash text NOT NULL,
    planned bigint NOT NULL,
    late bigint DEFAULT 0 NOT NULL,
    done bigint DEFAULT 0 NOT NULL,
    failed bigint DEFAULT 0 NOT NULL,
    circling bigint DEFAULT 0 NOT NULL,
    gone bigint DEFAULT 0 NOT NULL,
    state text DEFAULT 'preview'::text NOT NULL,
    reason text,
    at_once boolean DEFAULT false NOT NULL,
    step integer DEFAULT 0 NOT NULL,
    step_begin bigint DEFAULT 0 NOT NULL,
    step_end bigint DEFAULT 0 NOT NULL,
    stepped_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    submitted_at timestamp with time zone,
    ended_at timestamp with time zone,
    unseen bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    CONSTRAINT outbox_operations_act CHECK ((act = ANY (ARRAY['replay'::text, 'discard'::text]))),
    CONSTRAINT outbox_operations_state CHECK ((state = ANY (ARRAY['preview'::text, 'running'::text, 'stopped'::text, 'done'::text])))
);

ALTER TABLE public.outbox_operations ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_operations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.outbox_partition_crashes (
    topic text NOT NULL,
    partition integer NOT NULL,
    owner text NOT NULL,
    orderly boolean DEFAULT false NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    first_offset bigint,
    through bigint,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.outbox_primary (
    relay text NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    seen jsonb DEFAULT '{}'::jsonb NOT NULL,
    counted bigint DEFAULT 0 NOT NULL
);

CREATE TABLE public.outbox_processes (
    id uuid NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    address text,
    partitions jsonb DEFAULT '{}'::jsonb NOT NULL,
    memory bigint,
    runs integer DEFAULT 0 NOT NULL,
    pool_used integer,
    pool_size integer,
    waits_for text,
    waits_code text,
    waits_since timestamp with time zone,
    figures jsonb DEFAULT '{}'::jsonb NOT NULL,
    started timestamp with time zone DEFAULT now() NOT NULL,
    heartbeat timestamp with time zone DEFAULT now() NOT NULL,
    ended timestamp with time zone
);

CREATE TABLE public.outbox_rejects (
    id bigint NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    reason text NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    last_offset bigint,
    count bigint DEFAULT 1 NOT NULL
);

ALTER TABLE public.outbox_rejects ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.outbox_rejects_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.outbox_retired (
    first_id bigint NOT NULL,
    last_id bigint NOT NULL,
    messages bigint NOT NULL,
    kept bigint NOT NULL,
    tables text[] NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    dropped_at timestamp with time zone,
    archived text
);

CREATE TABLE public.outbox_run_crashes (
    topic text NOT NULL,
    partition integer NOT NULL,
    first_offset bigint NOT NULL,
    crashes integer NOT NULL,
    crashes_alone integer DEFAULT 0 NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.outbox_stats (
    width integer NOT NULL,
    bucket timestamp with time zone NOT NULL,
    process text DEFAULT ''::text NOT NULL,
    projection text DEFAULT 'main'::text NOT NULL,
    biz_type text NOT NULL,
    enqueued bigint DEFAULT 0 NOT NULL,
    relayed bigint DEFAULT 0 NOT NULL,
    consumed bigint DEFAULT 0 NOT NULL,
    retried bigint DEFAULT 0 NOT NULL,
    parked bigint DEFAULT 0 NOT NULL,
    dead bigint DEFAULT 0 NOT NULL,
    skipped bigint DEFAULT 0 NOT NULL,
    latency bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    bounds smallint DEFAULT 1 NOT NULL
);

CREATE TABLE public.outbox_topics (
    topic text NOT NULL,
    topic_id text NOT NULL,
    cluster_id text NOT NULL,
    partitions integer NOT NULL,
    noted_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.relay_shards (
    name text NOT NULL,
    shard integer NOT NULL,
    shards integer NOT NULL,
    floor bigint NOT NULL,
    leader text,
    pid integer,
    heartbeat timestamp with time zone
);

ALTER TABLE ONLY public.outbox_dead_letters ALTER COLUMN died SET DEFAULT nextval('public.outbox_died'::regclass);

ALTER TABLE ONLY public.agent_chats
    ADD CONSTRAINT agent_chats_pkey PRIMARY KEY (user_id, chat_id);

ALTER TABLE ONLY public.chat_histories
    ADD CONSTRAINT chat_histories_message UNIQUE (source, outbox_id);

ALTER TABLE ONLY public.chat_histories
    ADD CONSTRAINT chat_histories_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_actions
    ADD CONSTRAINT outbox_actions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_audit_left
    ADD CONSTRAINT outbox_audit_left_pkey PRIMARY KEY (outbox_id);

ALTER TABLE ONLY public.outbox_audit_ranges
    ADD CONSTRAINT outbox_audit_ranges_pkey PRIMARY KEY (first_id);

ALTER TABLE ONLY public.outbox_audits
    ADD CONSTRAINT outbox_audits_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_biz_types
    ADD CONSTRAINT outbox_biz_types_pkey PRIMARY KEY (biz_type);

ALTER TABLE ONLY public.outbox_dead_letters
    ADD CONSTRAINT outbox_dead_letters_pkey PRIMARY KEY (source, outbox_id);

ALTER TABLE ONLY public.outbox_direct
    ADD CONSTRAINT outbox_direct_pkey PRIMARY KEY (outbox_id);

ALTER TABLE ONLY public.outbox_foreign
    ADD CONSTRAINT outbox_foreign_pkey PRIMARY KEY (source, outbox_id);

ALTER TABLE ONLY public.outbox_gauges
    ADD CONSTRAINT outbox_gauges_pkey PRIMARY KEY (width, bucket, name, label);

ALTER TABLE ONLY public.outbox_lag
    ADD CONSTRAINT outbox_lag_pkey PRIMARY KEY ("group", topic, partition);

ALTER TABLE ONLY public.outbox_message_crashes
    ADD CONSTRAINT outbox_message_crashes_pkey PRIMARY KEY (topic, outbox_id);

ALTER TABLE ONLY public.outbox_open
    ADD CONSTRAINT outbox_open_pkey PRIMARY KEY (outbox_id);

ALTER TABLE ONLY public.outbox_operation_items
    ADD CONSTRAINT outbox_operation_items_pkey PRIMARY KEY (operation, "position");

ALTER TABLE ONLY public.outbox_operations
    ADD CONSTRAINT outbox_operations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_partition_crashes
    ADD CONSTRAINT outbox_partition_crashes_pkey PRIMARY KEY (topic, partition);

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_primary
    ADD CONSTRAINT outbox_primary_pkey PRIMARY KEY (relay);

ALTER TABLE ONLY public.outbox_processes
    ADD CONSTRAINT outbox_processes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_rejects
    ADD CONSTRAINT outbox_rejects_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.outbox_rejects
    ADD CONSTRAINT outbox_rejects_record UNIQUE (topic, partition, "offset");

ALTER TABLE ONLY public.outbox_retired
    ADD CONSTRAINT outbox_retired_pkey PRIMARY KEY (first_id);

ALTER TABLE ONLY public.outbox_run_crashes
    ADD CONSTRAINT outbox_run_crashes_pkey PRIMARY KEY (topic, partition, first_offset);

ALTER TABLE ONLY public.outbox_state
    ADD CONSTRAINT outbox_state_pkey PRIMARY KEY (outbox_id);

ALTER TABLE ONLY public.outbox_stats
    ADD CONSTRAINT outbox_stats_pkey PRIMARY KEY (width, bucket, process, projection, biz_type);

ALTER TABLE ONLY public.outbox_topics
    ADD CONSTRAINT outbox_topics_pkey PRIMARY KEY (topic, topic_id);

ALTER TABLE ONLY public.relay_position
    ADD CONSTRAINT relay_position_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.relay_shards
    ADD CONSTRAINT relay_shards_pkey PRIMARY KEY (name, shard);

CREATE INDEX outbox_dead_letters_causes ON public.outbox_dead_letters USING btree (fingerprint, topic, key) INCLUDE (died, died_at, held);

CREATE INDEX outbox_dead_letters_conversations ON public.outbox_dead_letters USING btree (topic, key) INCLUDE (held);

CREATE UNIQUE INDEX outbox_dead_letters_died ON public.outbox_dead_letters USING btree (died);

CREATE INDEX outbox_dead_letters_held ON public.outbox_dead_letters USING btree (died_at) WHERE held;

CREATE INDEX outbox_dead_letters_rows ON public.outbox_dead_letters USING btree (fingerprint, died);

CREATE INDEX outbox_foreign_dead ON public.outbox_foreign USING btree (source, outbox_id) WHERE (status = 'dead'::text);

CREATE INDEX outbox_foreign_open ON public.outbox_foreign USING btree (source, topic, key, arrived) WHERE open;

CREATE INDEX outbox_open_line ON public.outbox_open USING btree (topic, key, arrived);

CREATE INDEX outbox_open_waiting ON public.outbox_open USING btree (opened);

CREATE INDEX outbox_operations_running ON public.outbox_operations USING btree (id) WHERE (state = 'running'::text);

CREATE INDEX outbox_processes_heartbeat ON public.outbox_processes USING btree (heartbeat);

CREATE INDEX outbox_resends ON ONLY public.outbox USING btree (resend_of) WHERE (resend_of IS NOT NULL);

CREATE INDEX outbox_state_dead ON ONLY public.outbox_state USING btree (outbox_id) WHERE (status = 'dead'::text);

CREATE INDEX outbox_state_open ON ONLY public.outbox_state USING btree (topic, key, arrived) WHERE (topic IS NOT NULL);

CREATE TRIGGER outbox_dead_deleted AFTER DELETE ON public.outbox_foreign FOR EACH ROW WHEN ((old.status = 'dead'::text)) EXECUTE FUNCTION public.outbox_forget_dead();

CREATE TRIGGER outbox_dead_deleted AFTER DELETE ON public.outbox_state FOR EACH ROW WHEN ((old.status = 'dead'::text)) EXECUTE FUNCTION public.outbox_forget_dead();

CREATE TRIGGER outbox_dead_inserted AFTER INSERT ON public.outbox_foreign FOR EACH ROW WHEN ((new.status = 'dead'::text)) EXECUTE FUNCTION public.outbox_note_dead();

CREATE TRIGGER outbox_dead_inserted AFTER INSERT ON public.outbox_state FOR EACH ROW WHEN ((new.status = 'dead'::text)) EXECUTE FUNCTION public.outbox_note_dead();

CREATE TRIGGER outbox_dead_left AFTER UPDATE ON public.outbox_foreign FOR EACH ROW WHEN (((old.status = 'dead'::text) AND (new.status <> 'dead'::text))) EXECUTE FUNCTION public.outbox_forget_dead();

CREATE TRIGGER outbox_dead_left AFTER UPDATE ON public.outbox_state FOR EACH ROW WHEN (((old.status = 'dead'::text) AND (new.status <> 'dead'::text))) EXECUTE FUNCTION public.outbox_forget_dead();

CREATE TRIGGER outbox_dead_updated AFTER UPDATE ON public.outbox_foreign FOR EACH ROW WHEN ((new.status = 'dead'::text)) EXECUTE FUNCTION public.outbox_note_dead();

CREATE TRIGGER outbox_dead_updated AFTER UPDATE ON public.outbox_state FOR EACH ROW WHEN ((new.status = 'dead'::text)) EXECUTE FUNCTION public.outbox_note_dead();

CREATE TRIGGER outbox_foreign_opened BEFORE INSERT OR UPDATE ON public.outbox_foreign FOR EACH ROW WHEN ((new.open <> (new.opened IS NOT NULL))) EXECUTE FUNCTION public.outbox_foreign_opened();

CREATE TRIGGER outbox_open_delete AFTER DELETE ON public.outbox_state FOR EACH ROW WHEN ((old.topic IS NOT NULL)) EXECUTE FUNCTION public.outbox_open_drop();

CREATE TRIGGER outbox_open_insert AFTER INSERT ON public.outbox_state FOR EACH ROW WHEN ((new.topic IS NOT NULL)) EXECUTE FUNCTION public.outbox_open_put();

CREATE TRIGGER outbox_open_settle AFTER UPDATE ON public.outbox_state FOR EACH ROW WHEN (((old.topic IS NOT NULL) AND (new.topic IS NULL))) EXECUTE FUNCTION public.outbox_open_drop();

CREATE TRIGGER outbox_open_update AFTER UPDATE ON public.outbox_state FOR EACH ROW WHEN ((new.topic IS NOT NULL)) EXECUTE FUNCTION public.outbox_open_put();

ALTER TABLE ONLY public.outbox_operation_items
    ADD CONSTRAINT outbox_operation_items_operation_fkey FOREIGN KEY (operation) REFERENCES public.outbox_operations(id) ON DELETE CASCADE;
