-- deliverable --
-- Outbox rows as the relay would publish them, in the order given.
SELECT o.id, o.topic, o.key, o.payload::text, o.biz_type, o.traceparent, o.resend_of,
       (extract(epoch FROM o.created_at) * 1000)::bigint
FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS given (id, position)
JOIN outbox AS o ON o.id = given.id
ORDER BY position;

-- fates --
-- What became of these messages, in the order given; the delay is what was decided with the last
-- failure.
SELECT root.id, root.biz_type, root.key, coalesce(s.status, 'pending'), coalesce(s.attempts, 0),
       s.error_code, s.error, extract(epoch FROM s.next_retry_at - s.updated_at)::double precision
FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS given (id, position)
JOIN outbox AS o ON o.id = given.id
JOIN outbox AS root ON root.id = coalesce(o.resend_of, o.id)
LEFT JOIN outbox_state AS s ON s.outbox_id = root.id
ORDER BY position;

-- make_due --
-- As if the time of everything that waits for its time had come.
UPDATE outbox_state SET next_retry_at = now() WHERE topic IS NOT NULL AND status = 'retrying';

-- all_open --
-- Everything that waits, in its order.
SELECT outbox_id, topic, partition, key FROM outbox_open ORDER BY arrived;
