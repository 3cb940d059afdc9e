-- What pages and metrics show: counts in buckets, processes, lag, gauges, and each dead message once.

-- Counts and latencies by time and biz_type.  `process` is the incarnation that counted, '' once they are merged; `latency`
-- counts messages by the bounds of that version (streams/figures/histogram.py).
DROP TABLE outbox_stats;
CREATE TABLE outbox_stats (
    width      integer,
    bucket     timestamptz,
    process    text DEFAULT '',
    projection text DEFAULT 'main',
    biz_type   text,
    enqueued   bigint NOT NULL DEFAULT 0,
    relayed    bigint NOT NULL DEFAULT 0,
    consumed   bigint NOT NULL DEFAULT 0,
    retried    bigint NOT NULL DEFAULT 0,
    parked     bigint NOT NULL DEFAULT 0,
    dead       bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,
    latency    bigint[] NOT NULL DEFAULT '{}',
    bounds     smallint NOT NULL DEFAULT 1,
    PRIMARY KEY (width, bucket, process, projection, biz_type)
);

-- One row for each life of a process; `ended` says that it ended in order.
CREATE TABLE outbox_processes (
    id          uuid PRIMARY KEY,
    kind        text NOT NULL,
    name        text NOT NULL,
    host        text NOT NULL,
    pid         integer NOT NULL,
    version     text NOT NULL,
    address     text,
    partitions  jsonb NOT NULL DEFAULT '{}',
    memory      bigint,
    runs        integer NOT NULL DEFAULT 0,
    pool_used   integer,
    pool_size   integer,
    waits_for   text,
    waits_code  text,
    waits_since timestamptz,
    figures     jsonb NOT NULL DEFAULT '{}',
    started     timestamptz NOT NULL DEFAULT now(),
    heartbeat   timestamptz NOT NULL DEFAULT now(),
    ended       timestamptz
);
CREATE INDEX outbox_processes_heartbeat ON outbox_processes (heartbeat);

-- How far a consumer group is in each partition; `moved` is when the committed offset changed last, `worked` the time of the
-- last record that was worked.  What was looked at earlier than what is here is not written.
CREATE TABLE outbox_lag (
    "group"    text,
    topic      text,
    partition  integer,
    topic_id   text,
    committed  bigint,
    end_offset bigint,
    log_start  bigint,
    worked     timestamptz,
    moved      timestamptz NOT NULL DEFAULT now(),
    at         timestamptz NOT NULL,
    PRIMARY KEY ("group", topic, partition)
);

-- Series that a leader writes: the last and the highest value of each bucket.
CREATE TABLE outbox_gauges (
    width   integer,
    bucket  timestamptz,
    name    text,
    label   text DEFAULT '',
    value   double precision NOT NULL,
    highest double precision NOT NULL,
    PRIMARY KEY (width, bucket, name, label)
);

-- What only the primary or Kafka can tell, as each leader saw it last: replicas and pages read it here.  The row without a
-- relay says up to which id rows are `counted` in outbox_stats; what was there before is not.
CREATE TABLE outbox_primary (
    relay   text PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    seen    jsonb NOT NULL DEFAULT '{}',
    counted bigint NOT NULL DEFAULT 0
);
INSERT INTO outbox_primary (relay, counted) SELECT '', coalesce(max(floor), 0) FROM relay_position;

-- Each dead message once: grouping them is a scan of one index.  `died` is a sequence, in the order of dying.
CREATE SEQUENCE outbox_died;
CREATE TABLE outbox_dead_letters (
    source      text,
    outbox_id   bigint,
    topic       text,
    key         text,
    biz_type    text,
    error_code  text,
    fingerprint text NOT NULL,
    died        bigint NOT NULL DEFAULT nextval('outbox_died'),
    died_at     timestamptz NOT NULL DEFAULT now(),
    held        boolean NOT NULL DEFAULT false,
    PRIMARY KEY (source, outbox_id)
);
ALTER SEQUENCE outbox_died OWNED BY outbox_dead_letters.died;
CREATE UNIQUE INDEX outbox_dead_letters_died ON outbox_dead_letters (died);
CREATE INDEX outbox_dead_letters_causes ON outbox_dead_letters (fingerprint, topic, key) INCLUDE (died, died_at, held);
CREATE INDEX outbox_dead_letters_rows ON outbox_dead_letters (fingerprint, died);
CREATE INDEX outbox_dead_letters_held ON outbox_dead_letters (died_at) WHERE held;
CREATE INDEX outbox_dead_letters_conversations ON outbox_dead_letters (topic, key) INCLUDE (held);

-- Triggers, so that workers and relays of before, the desk and SQL by hand keep it alike.  With the rights of the tables'
-- owner: a worker whose role was granted nothing of it must not fail over this.
CREATE FUNCTION outbox_note_dead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET plan_cache_mode = force_custom_plan AS $$
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

CREATE FUNCTION outbox_forget_dead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_TABLE_NAME = 'outbox_foreign' THEN
        DELETE FROM outbox_dead_letters WHERE source = OLD.source AND outbox_id = OLD.outbox_id;
    ELSE
        DELETE FROM outbox_dead_letters WHERE source = '' AND outbox_id = OLD.outbox_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER outbox_dead_inserted AFTER INSERT ON outbox_state
FOR EACH ROW WHEN (NEW.status = 'dead') EXECUTE FUNCTION outbox_note_dead();
CREATE TRIGGER outbox_dead_updated AFTER UPDATE ON outbox_state
FOR EACH ROW WHEN (NEW.status = 'dead') EXECUTE FUNCTION outbox_note_dead();
CREATE TRIGGER outbox_dead_left AFTER UPDATE ON outbox_state
FOR EACH ROW WHEN (OLD.status = 'dead' AND NEW.status <> 'dead') EXECUTE FUNCTION outbox_forget_dead();
CREATE TRIGGER outbox_dead_deleted AFTER DELETE ON outbox_state
FOR EACH ROW WHEN (OLD.status = 'dead') EXECUTE FUNCTION outbox_forget_dead();
CREATE TRIGGER outbox_dead_inserted AFTER INSERT ON outbox_foreign
FOR EACH ROW WHEN (NEW.status = 'dead') EXECUTE FUNCTION outbox_note_dead();
CREATE TRIGGER outbox_dead_updated AFTER UPDATE ON outbox_foreign
FOR EACH ROW WHEN (NEW.status = 'dead') EXECUTE FUNCTION outbox_note_dead();
CREATE TRIGGER outbox_dead_left AFTER UPDATE ON outbox_foreign
FOR EACH ROW WHEN (OLD.status = 'dead' AND NEW.status <> 'dead') EXECUTE FUNCTION outbox_forget_dead();
CREATE TRIGGER outbox_dead_deleted AFTER DELETE ON outbox_foreign
FOR EACH ROW WHEN (OLD.status = 'dead') EXECUTE FUNCTION outbox_forget_dead();

INSERT INTO outbox_dead_letters (source, outbox_id, topic, key, biz_type, error_code, fingerprint, died_at, held)
SELECT source, outbox_id, topic, key, biz_type, error_code, fingerprint, since, held
FROM outbox_dead
ORDER BY since, source, outbox_id;

-- plpgsql looks names up when it runs.
DO $$
DECLARE
    schema text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'outbox'::regclass);
BEGIN
    EXECUTE format('ALTER FUNCTION %s.outbox_note_dead() SET search_path = %s, pg_temp', schema, schema);
    EXECUTE format('ALTER FUNCTION %s.outbox_forget_dead() SET search_path = %s, pg_temp', schema, schema);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s.outbox_note_dead() FROM PUBLIC', schema);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s.outbox_forget_dead() FROM PUBLIC', schema);
END
$$;

-- Bulk acts.  A preview is a row in state `preview` with the count and the hash of what it would work; its items are written
-- when it is submitted.  Whoever holds the advisory lock of the id works it.
CREATE TABLE outbox_operations (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    act          text NOT NULL CONSTRAINT outbox_operations_act CHECK (act IN ('replay', 'discard')),
    who          text NOT NULL,
    why          text,
    filter       jsonb NOT NULL DEFAULT '{}',
    force        boolean NOT NULL DEFAULT false,
    rate         double precision,
    through      bigint NOT NULL,
    hash         text NOT NULL,
    planned      bigint NOT NULL,
    late         bigint NOT NULL DEFAULT 0,
    done         bigint NOT NULL DEFAULT 0,
    failed       bigint NOT NULL DEFAULT 0,
    circling     bigint NOT NULL DEFAULT 0,
    gone         bigint NOT NULL DEFAULT 0,
    state        text NOT NULL DEFAULT 'preview' CONSTRAINT outbox_operations_state
                 CHECK (state IN ('preview', 'running', 'stopped', 'done')),
    reason       text,
    at_once      boolean NOT NULL DEFAULT false,
    step         integer NOT NULL DEFAULT 0,
    step_begin   bigint NOT NULL DEFAULT 0,
    step_end     bigint NOT NULL DEFAULT 0,
    stepped_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    submitted_at timestamptz,
    ended_at     timestamptz
);
CREATE INDEX outbox_operations_running ON outbox_operations (id) WHERE state = 'running';
CREATE TABLE outbox_operation_items (
    operation bigint REFERENCES outbox_operations ON DELETE CASCADE,
    position  bigint,
    source    text NOT NULL DEFAULT '',
    outbox_id bigint NOT NULL,
    outcome   text NOT NULL DEFAULT 'waiting',
    resend    bigint,
    at        timestamptz,
    PRIMARY KEY (operation, position)
);
