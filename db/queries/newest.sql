-- newest_messages --
-- Messages, the newest first, from before one on, with where they stand: by the primary key alone.
SELECT o.id AS outbox_id, o.biz_type, o.topic, o.key,
       CASE WHEN isfinite(o.created_at) THEN o.created_at AT TIME ZONE 'UTC' END AS enqueued,
       coalesce(s.status, CASE WHEN o.id <= relay.floor THEN 'published' ELSE 'pending' END) AS status,
       coalesce(s.attempts, 0) AS attempts, s.error_code, s.updated_at AS updated
FROM (
    SELECT id, biz_type, topic, key, created_at
    FROM outbox
    WHERE id < coalesce(%(before)s::bigint, 9223372036854775807) AND resend_of IS NULL
    ORDER BY id DESC
    LIMIT %(limit)s
) AS o
CROSS JOIN (SELECT coalesce(max(floor), 0) AS floor FROM relay_position) AS relay
LEFT JOIN outbox_state AS s ON s.outbox_id = o.id
ORDER BY o.id DESC;

-- badges --
-- How many messages are dead, and how many of them hold their conversation: each at most one more than is shown.
SELECT (SELECT count(*) FROM (SELECT FROM outbox_dead_letters LIMIT 1000) AS dead),
       (SELECT count(*) FROM (SELECT FROM outbox_dead_letters WHERE held LIMIT 1000) AS holding);
