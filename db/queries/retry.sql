-- open_rows --
-- Those of these messages that are open, in their order, with the payload that counts; about so
-- many bytes of payloads as they are stored, so that a conversation of large ones is read in
-- portions. The time as in `payloads`.
SELECT outbox_id, key, status, attempts, due, error_code, since, partition, "offset", biz_type,
       payload::text, CASE WHEN created_at BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999'
                           THEN (extract(epoch FROM created_at) * 1000)::bigint END
FROM (
    SELECT s.outbox_id, s.key, s.status, s.attempts,
           coalesce(s.next_retry_at <= now(), false) AS due, s.error_code,
           extract(epoch FROM now() - s.updated_at)::double precision AS since, s.partition,
           s."offset", root.biz_type, body.payload, root.created_at, s.arrived,
           sum(pg_column_size(body.payload)) OVER (ORDER BY s.arrived)
               - pg_column_size(body.payload) AS before
    FROM (SELECT * FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]) OFFSET 0) AS s
    LEFT JOIN (SELECT * FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS root
      ON root.id = s.outbox_id
    LEFT JOIN (SELECT * FROM outbox WHERE id = ANY(%(bodies)s::bigint[]) OFFSET 0) AS body
           ON body.id = coalesce(s.source_id, s.outbox_id)
    WHERE s.topic = %(topic)s
) AS rows
WHERE coalesce(before, 0) < %(bytes)s
ORDER BY arrived;

-- open_line --
-- The first open messages of these conversations, in their order, each with the row whose payload
-- counts.
SELECT line.outbox_id, coalesce(line.source_id, line.outbox_id)
FROM json_array_elements_text(%(keys)s::json) AS given (key)
CROSS JOIN LATERAL (
    SELECT * FROM outbox_open AS o
    WHERE o.topic = %(topic)s AND o.key = given.key
    ORDER BY o.arrived
    LIMIT %(most)s
) AS line
ORDER BY line.arrived;

-- newest_act --
-- Another number with each act of an operator, which may have set conversations free.  Not the
-- highest id: an act that was begun earlier may commit later, with a lower one.
SELECT coalesce(sum(id), 0)::bigint
FROM (SELECT id FROM outbox_actions ORDER BY id DESC LIMIT 100) AS newest;

-- heads --
-- The message that each of these conversations waits for.
SELECT head.key, head.partition, head.outbox_id, head.status, head.attempts, head.error_code,
       extract(epoch FROM head.due)::double precision
FROM json_array_elements_text(%(keys)s::json) AS given (key)
CROSS JOIN LATERAL (
    SELECT * FROM outbox_open AS o
    WHERE o.topic = %(topic)s AND o.key = given.key
    ORDER BY o.arrived
    LIMIT 1
) AS head;

-- all_heads --
-- The same for every conversation of these partitions; skips from one conversation to the next,
-- however much is parked.
WITH RECURSIVE head AS (
    (SELECT key, partition, outbox_id, status, attempts, error_code, due
     FROM outbox_open WHERE topic = %(topic)s ORDER BY key, arrived LIMIT 1)
    UNION ALL
    SELECT next.*
    FROM head
    CROSS JOIN LATERAL (
        SELECT o.key, o.partition, o.outbox_id, o.status, o.attempts, o.error_code, o.due
        FROM outbox_open AS o
        WHERE o.topic = %(topic)s AND o.key > head.key
        ORDER BY o.key, o.arrived
        LIMIT 1
    ) AS next
)
SELECT key, partition, outbox_id, status, attempts, error_code,
       extract(epoch FROM due)::double precision
FROM head
WHERE partition = ANY(%(partitions)s::integer[]);

-- biz_types_of --
-- What kinds of messages these are.
SELECT id, biz_type FROM outbox WHERE id = ANY(%(ids)s::bigint[]);

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
