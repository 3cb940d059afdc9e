-- open_rows --
-- The first open messages of these conversations, in their order, with the payload that counts; about so many bytes of
-- payloads as they are stored, so that a conversation of large ones is read in portions.
SELECT outbox_id, key, status, attempts, due, error_code, since, partition, "offset", biz_type, payload::text, created_at
FROM (
    SELECT s.outbox_id, s.key, s.status, s.attempts, coalesce(s.next_retry_at <= now(), false) AS due, s.error_code,
           extract(epoch FROM now() - s.updated_at)::double precision AS since, s.partition, s."offset", root.biz_type, body.payload, root.created_at, s.arrived,
           sum(pg_column_size(body.payload)) OVER (ORDER BY s.arrived) - pg_column_size(body.payload) AS before
    FROM json_array_elements_text(%(keys)s::json) AS given (key)
    CROSS JOIN LATERAL (
        SELECT * FROM outbox_state AS state
        WHERE state.topic = %(topic)s AND state.key = given.key
        ORDER BY state.arrived
        LIMIT %(most)s
    ) AS s
    LEFT JOIN outbox AS root ON root.id = s.outbox_id
    LEFT JOIN outbox AS body ON body.id = coalesce(s.source_id, s.outbox_id)
) AS found
WHERE coalesce(before, 0) < %(bytes)s
ORDER BY arrived;

-- newest_act --
-- What an operator did last: it may have set conversations free.
SELECT coalesce(max(id), 0) FROM outbox_actions;

-- heads --
-- The message that each of these conversations waits for; its biz_type where it waits for somebody who knows that.
SELECT s.key, s.partition, s.outbox_id, s.status, s.attempts, s.error_code,
       extract(epoch FROM s.next_retry_at)::double precision,
       CASE WHEN s.error_code = 'biz_type' THEN (SELECT biz_type FROM outbox AS o WHERE o.id = s.outbox_id) END
FROM json_array_elements_text(%(keys)s::json) AS given (key)
CROSS JOIN LATERAL (
    SELECT * FROM outbox_state AS state
    WHERE state.topic = %(topic)s AND state.key = given.key
    ORDER BY state.arrived
    LIMIT 1
) AS s;

-- all_heads --
-- The same for every conversation of these partitions; skips from one conversation to the next, however much is parked.
WITH RECURSIVE head AS (
    (SELECT key, partition, outbox_id, status, attempts, error_code, next_retry_at
     FROM outbox_state WHERE topic = %(topic)s ORDER BY key, arrived LIMIT 1)
    UNION ALL
    SELECT next.*
    FROM head
    CROSS JOIN LATERAL (
        SELECT s.key, s.partition, s.outbox_id, s.status, s.attempts, s.error_code, s.next_retry_at
        FROM outbox_state AS s
        WHERE s.topic = %(topic)s AND s.key > head.key
        ORDER BY s.key, s.arrived
        LIMIT 1
    ) AS next
)
SELECT key, partition, outbox_id, status, attempts, error_code, extract(epoch FROM next_retry_at)::double precision,
       CASE WHEN error_code = 'biz_type' THEN (SELECT biz_type FROM outbox AS o WHERE o.id = outbox_id) END
FROM head
WHERE partition = ANY(%(partitions)s::integer[]);

-- newest_dead --
-- The newest dead letters of these partitions.
SELECT o.key, s.partition, s.outbox_id, s.attempts, s.error_code
FROM outbox_state AS s
JOIN outbox AS o ON o.id = s.outbox_id
WHERE s.status = 'dead' AND o.topic = %(topic)s AND s.partition = ANY(%(partitions)s::integer[])
ORDER BY s.outbox_id DESC
LIMIT %(most)s;

-- still_dead --
-- Which of these messages are dead.
SELECT outbox_id FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]) AND status = 'dead';
