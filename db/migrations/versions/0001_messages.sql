-- Root rows with the status a person asks for: what the state says, else published (at or below the floor), else pending.
CREATE VIEW outbox_messages AS
SELECT o.id AS outbox_id, o.biz_type, o.topic, o.key, o.payload, o.traceparent, o.created_at,
       coalesce(s.status, CASE WHEN o.id <= r.floor THEN 'published' ELSE 'pending' END) AS status,
       s.attempts, s.error_code, s.error, s.next_retry_at, s.partition, s."offset", s.applied, s.updated_at
FROM outbox AS o
LEFT JOIN outbox_state AS s ON s.outbox_id = o.id
CROSS JOIN (SELECT coalesce(max(floor), 0) AS floor FROM relay_position) AS r
WHERE o.resend_of IS NULL;
