-- Fates of messages that came in envelopes: their ids are another system's.  The row is all there is of such a message: it
-- holds what our own have in their outbox row, and the payload while somebody may still need it.
CREATE TABLE outbox_foreign (
    source        text CONSTRAINT outbox_foreign_source CHECK (source <> ''),
    outbox_id     bigint,
    "offset"      bigint,
    applied       bigint,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    created_at    timestamp(3) without time zone,
    partition     integer,
    attempts      integer NOT NULL DEFAULT 0,
    replays       smallint NOT NULL DEFAULT 0,
    open          boolean NOT NULL DEFAULT false,
    status        text NOT NULL CONSTRAINT outbox_foreign_status
                  CHECK (status IN ('retrying', 'parked', 'consumed', 'dead', 'discarded')),
    arrived       bigint,
    next_retry_at timestamptz,
    biz_type      text,
    topic         text,
    key           text,
    error_code    text,
    error         text CONSTRAINT outbox_foreign_error_length CHECK (length(error) <= 2000),
    payload       text,
    replaced      text,
    PRIMARY KEY (source, outbox_id)
);
CREATE INDEX outbox_foreign_open ON outbox_foreign (source, topic, key, arrived) WHERE open;
CREATE INDEX outbox_foreign_dead ON outbox_foreign (source, outbox_id) WHERE status = 'dead';

-- Dead messages without their text, ours and those of other systems; `held` when their conversation waits for an operator,
-- `name` is what commands call a message.
CREATE OR REPLACE VIEW outbox_dead AS
SELECT s.outbox_id, o.biz_type, o.topic, o.key, s.attempts, s.replays, s.error_code, s.error,
       outbox_fingerprint(o.biz_type, s.error_code, s.error) AS fingerprint, s.topic IS NOT NULL AS held,
       s.updated_at AS since, s.arrived, s.partition, s."offset", '' AS source, s.outbox_id::text AS name
FROM outbox_state AS s
JOIN outbox AS o ON o.id = s.outbox_id
WHERE s.status = 'dead'
UNION ALL
SELECT f.outbox_id, f.biz_type, f.topic, f.key, f.attempts, f.replays, f.error_code, f.error,
       outbox_fingerprint(f.biz_type, f.error_code, f.error), f.open,
       f.updated_at, f.arrived, f.partition, f."offset", f.source, f.source || ':' || f.outbox_id
FROM outbox_foreign AS f
WHERE f.status = 'dead';
