CREATE SEQUENCE outbox_arrived;
CREATE SEQUENCE outbox_applied;

-- Append-only: never UPDATEd.  The payload is verbatim text that the server has checked to be JSON.
CREATE TABLE outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    biz_type    text NOT NULL,
    topic       text NOT NULL CONSTRAINT outbox_topic_length CHECK (octet_length(topic) BETWEEN 1 AND 249),
    key         text NOT NULL CONSTRAINT outbox_key_length CHECK (octet_length(key) BETWEEN 1 AND 1024),
    payload     json NOT NULL,
    traceparent text,
    resend_of   bigint,
    created_at  timestamp(3) without time zone NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC')
) PARTITION BY RANGE (id);
CREATE INDEX outbox_resends ON outbox (resend_of) WHERE resend_of IS NOT NULL;

-- Ids of messages that their callers wrote themselves while the outbox was disabled: the audit knows them by it.
CREATE TABLE outbox_direct (
    outbox_id bigint PRIMARY KEY
);

CREATE TABLE outbox_biz_types (
    biz_type  text PRIMARY KEY,
    topic     text NOT NULL,
    max_bytes integer NOT NULL
);

-- One narrow row per message whose fate has begun; topic and key only while it is open.
CREATE TABLE outbox_state (
    outbox_id     bigint PRIMARY KEY,
    "offset"      bigint,
    applied       bigint,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    partition     integer,
    attempts      integer NOT NULL DEFAULT 0,
    replays       smallint NOT NULL DEFAULT 0,
    status        text NOT NULL CONSTRAINT outbox_state_status
                  CHECK (status IN ('retrying', 'parked', 'replaying', 'consumed', 'dead', 'discarded')),
    arrived       bigint,
    source_id     bigint,
    next_retry_at timestamptz,
    topic         text,
    key           text,
    error_code    text,
    error         text CONSTRAINT outbox_state_error_length CHECK (length(error) <= 2000)
) PARTITION BY RANGE (outbox_id);
CREATE INDEX outbox_state_open ON outbox_state (topic, key, arrived) WHERE topic IS NOT NULL;
CREATE INDEX outbox_state_dead ON outbox_state (outbox_id) WHERE status = 'dead';

CREATE TABLE outbox_run_crashes (
    topic         text,
    partition     integer,
    first_offset  bigint,
    crashes       integer NOT NULL,
    crashes_alone integer NOT NULL DEFAULT 0,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, first_offset)
);

CREATE TABLE outbox_rejects (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic     text NOT NULL,
    partition integer NOT NULL,
    "offset"  bigint NOT NULL,
    reason    text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT outbox_rejects_record UNIQUE (topic, partition, "offset")
);

CREATE TABLE relay_position (
    name      text PRIMARY KEY,
    mode      text NOT NULL,
    floor     bigint NOT NULL DEFAULT 0,
    lsn       pg_lsn,
    leader    text,
    pid       integer,
    heartbeat timestamptz
);

CREATE TABLE outbox_actions (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    who       text NOT NULL,
    act       text NOT NULL,
    outbox_id bigint,
    what      jsonb NOT NULL DEFAULT '{}',
    why       text
);

-- What `streams audit` has looked at: one row per range of ids, with how far it reaches in applied and in offsets.
CREATE TABLE outbox_audit_ranges (
    first_id bigint PRIMARY KEY,
    last_id  bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    reach    jsonb NOT NULL
);

-- Messages of those ranges that were not settled when it looked.
CREATE TABLE outbox_audit_left (
    outbox_id bigint PRIMARY KEY
);

CREATE TABLE outbox_audits (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    seconds  double precision NOT NULL,
    complete boolean NOT NULL,
    messages bigint NOT NULL,
    wrong    bigint NOT NULL,
    report   jsonb NOT NULL
);

CREATE TABLE outbox_stats (
    bucket   timestamptz,
    process  text,
    biz_type text,
    relayed  bigint NOT NULL DEFAULT 0,
    consumed bigint NOT NULL DEFAULT 0,
    retried  bigint NOT NULL DEFAULT 0,
    dead     bigint NOT NULL DEFAULT 0,
    latency  bigint[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (bucket, process, biz_type)
);
