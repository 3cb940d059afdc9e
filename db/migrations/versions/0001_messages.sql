-- Root rows with the status a person asks for: what the state says, else published (at or below the floor), else pending.
CREATE VIEW outbox_messages AS
SELECT o.id AS outbox_id, o.biz_type, o.topic, o.key, o.payload, o.traceparent, o.created_at,
       coalesce(s.status, CASE WHEN o.id <= r.floor THEN 'published' ELSE 'pending' END) AS status,
       s.attempts, s.error_code, s.error, s.next_retry_at, s.partition, s."offset", s.applied, s.updated_at
FROM outbox AS o
LEFT JOIN outbox_state AS s ON s.outbox_id = o.id
CROSS JOIN (SELECT coalesce(max(floor), 0) AS floor FROM relay_position) AS r
WHERE o.resend_of IS NULL;

-- What an operator sees as one error: numbers in it do not count.
CREATE FUNCTION outbox_fingerprint(biz_type text, error_code text, error text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT left(md5(concat_ws(E'\x1f', biz_type, error_code, regexp_replace(coalesce(error, ''), '[0-9]+', '#', 'g'))), 8)
$$;

-- Dead messages without their text; `held` when their conversation waits for an operator.
CREATE VIEW outbox_dead AS
SELECT s.outbox_id, o.biz_type, o.topic, o.key, s.attempts, s.replays, s.error_code, s.error,
       outbox_fingerprint(o.biz_type, s.error_code, s.error) AS fingerprint, s.topic IS NOT NULL AS held,
       s.updated_at AS since, s.arrived, s.partition, s."offset"
FROM outbox_state AS s
JOIN outbox AS o ON o.id = s.outbox_id
WHERE s.status = 'dead';
