-- foreign_claim_all --
-- Take these messages of another system for this transaction if every one is new; otherwise none.
-- While anything of the topic is open, only what is `%(checked)s` to wait for nothing is taken.
INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, created_at, status, partition,
                            "offset", applied)
SELECT %(source)s, outbox_id, biz_type, %(topic)s, key,
       timestamp '1970-01-01' + created_ms * interval '1 millisecond',
       'consumed', partition, "offset", nextval('outbox_applied')
FROM ROWS FROM (
         json_to_recordset(%(messages)s::json)
         AS (outbox_id bigint, biz_type text, key text, created_ms bigint, partition integer,
             "offset" bigint)
     ) WITH ORDINALITY AS m (outbox_id, biz_type, key, created_ms, partition, "offset", position)
WHERE (%(checked)s OR NOT EXISTS (SELECT FROM outbox_foreign
                                  WHERE open AND source = %(source)s AND topic = %(topic)s))
  AND NOT EXISTS (
      SELECT FROM outbox_foreign AS s
      WHERE s.source = %(source)s AND s.outbox_id = ANY(%(ids)s::bigint[]))
ORDER BY position;

-- foreign_claim --
-- Take those of these messages of another system for this transaction that are new, and give them
-- back. While anything of the topic is open, only what is `%(checked)s` to wait for nothing.
INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, created_at, status, partition,
                            "offset", applied)
SELECT %(source)s, outbox_id, biz_type, %(topic)s, key,
       timestamp '1970-01-01' + created_ms * interval '1 millisecond',
       'consumed', partition, "offset", nextval('outbox_applied')
FROM ROWS FROM (
         json_to_recordset(%(messages)s::json)
         AS (outbox_id bigint, biz_type text, key text, created_ms bigint, partition integer,
             "offset" bigint)
     ) WITH ORDINALITY AS m (outbox_id, biz_type, key, created_ms, partition, "offset", position)
WHERE %(checked)s
   OR NOT EXISTS (SELECT FROM outbox_foreign
                  WHERE open AND source = %(source)s AND topic = %(topic)s)
ORDER BY position
ON CONFLICT (source, outbox_id) DO NOTHING
RETURNING outbox_id;

-- foreign_probe --
-- For how many seconds it was asked whether anything of this topic is open; and no plan reads the
-- whole table.
SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision,
       set_config('enable_seqscan', 'off', true)
FROM (
    SELECT (SELECT true FROM outbox_foreign
            WHERE open AND source = %(source)s AND topic = %(topic)s
            ORDER BY key, arrived
            LIMIT 1) AS waits
    OFFSET 0
) AS probed
WHERE waits IS NULL OR waits;

-- foreign_open_keys --
-- Conversations that wait behind an open message.
SELECT key
FROM json_array_elements_text(%(keys)s::json) AS given (key)
WHERE (SELECT true FROM outbox_foreign AS s
       WHERE s.open AND s.source = %(source)s AND s.topic = %(topic)s AND s.key = given.key
       LIMIT 1);

-- foreign_facts --
-- The fates so far.  Every message is known: there is no outbox row to compare it with.
SELECT given.id, true, s.status, NULL::bigint, s.attempts,
       coalesce(s.next_retry_at <= now(), false), coalesce(s.open, false) AND NOT EXISTS (
           SELECT FROM outbox_foreign AS e
           WHERE e.open AND e.source = s.source AND e.topic = s.topic AND e.key = s.key
             AND e.arrived < s.arrived),
       s.error_code, coalesce(extract(epoch FROM now() - s.updated_at), 0)::double precision
FROM unnest(%(ids)s::bigint[]) AS given (id)
LEFT JOIN LATERAL (
    SELECT * FROM outbox_foreign AS one WHERE one.source = %(source)s AND one.outbox_id = given.id
    LIMIT 1) AS s ON true;

-- foreign_payloads --
-- Messages with the payload that counts, and their times in milliseconds since 1970, null where
-- Python has no such time.
SELECT outbox_id, biz_type, key, payload,
       CASE WHEN created_at BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999'
            THEN (extract(epoch FROM created_at) * 1000)::bigint END
FROM outbox_foreign
WHERE source = %(source)s AND outbox_id = ANY(%(ids)s::bigint[]);

-- foreign_reclaim --
-- Take open messages for this transaction, in the order given, if their status is still the one
-- given.
WITH m AS MATERIALIZED (
    SELECT given.*, nextval('outbox_applied') AS applied,
           (SELECT f.opened FROM outbox_foreign AS f
            WHERE f.source = %(source)s AND f.outbox_id = given.outbox_id)
    FROM json_to_recordset(%(messages)s::json) AS given (outbox_id bigint, status text)
)
UPDATE outbox_foreign AS s
SET status = 'consumed', applied = m.applied, open = false, next_retry_at = NULL, updated_at = now()
FROM m
WHERE s.source = %(source)s AND s.outbox_id = m.outbox_id AND s.status = m.status AND s.open
RETURNING s.outbox_id, extract(epoch FROM m.opened)::double precision;

-- foreign_settle --
-- The payloads of those that were taken and are through are needed no more.
UPDATE outbox_foreign
SET payload = NULL
WHERE source = %(source)s AND outbox_id = ANY(%(ids)s::bigint[]) AND status = 'consumed';

-- foreign_open_line --
-- The first open messages of these conversations, in their order; each row holds the payload that
-- counts.
SELECT line.outbox_id, line.outbox_id
FROM json_array_elements_text(%(keys)s::json) AS given (key)
CROSS JOIN LATERAL (
    SELECT * FROM outbox_foreign AS f
    WHERE f.open AND f.source = %(source)s AND f.topic = %(topic)s AND f.key = given.key
    ORDER BY f.arrived
    LIMIT %(most)s
) AS line
ORDER BY line.arrived;

-- foreign_open --
-- Messages set aside on arrival, dead or parked, with all there is of them; what has a fate already
-- keeps it.
INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, created_at, status, partition,
                            "offset", arrived, open, error_code, error, payload)
SELECT %(source)s, outbox_id, biz_type, %(topic)s, key,
       timestamp '1970-01-01' + created_ms * interval '1 millisecond',
       status, partition, "offset", nextval('outbox_arrived'), open, error_code, error, payload
FROM ROWS FROM (
         json_to_recordset(%(messages)s::json)
         AS (outbox_id bigint, biz_type text, key text, created_ms bigint, status text,
             open boolean, partition integer, "offset" bigint, error_code text, error text,
             payload text)
     ) WITH ORDINALITY AS m (outbox_id, biz_type, key, created_ms, status, open, partition,
                             "offset", error_code, error, payload, position)
ORDER BY position
ON CONFLICT (source, outbox_id) DO NOTHING
RETURNING outbox_id;

-- foreign_set_aside --
-- Messages of this transaction that are not applied after all, in record order; what arrived before
-- keeps its place.
WITH m AS MATERIALIZED (
    SELECT given.*, nextval('outbox_arrived') AS arrived
    FROM json_to_recordset(%(messages)s::json)
         AS given (outbox_id bigint, status text, open boolean, key text, attempts integer,
                   error_code text, error text, delay double precision, payload text)
)
UPDATE outbox_foreign AS s
SET status = m.status, applied = NULL, arrived = coalesce(s.arrived, m.arrived), open = m.open,
    key = m.key, attempts = m.attempts, error_code = coalesce(m.error_code, s.error_code),
    error = coalesce(m.error, s.error), next_retry_at = now() + m.delay * interval '1 second',
    payload = coalesce(s.payload, m.payload), updated_at = now()
FROM m
WHERE s.source = %(source)s AND s.outbox_id = m.outbox_id
RETURNING s.outbox_id, extract(epoch FROM s.next_retry_at)::double precision;

-- foreign_opened_before --
-- As `opened_before`.
UPDATE outbox_foreign AS f
SET opened = to_timestamp(given.opened)
FROM json_to_recordset(%(messages)s::json) AS given (outbox_id bigint, opened double precision)
WHERE f.source = %(source)s AND f.outbox_id = given.outbox_id AND f.open;

-- foreign_open_rows --
-- Those of these messages that are open, in their order; about so many bytes of payloads as they
-- are stored. The time as in `foreign_payloads`, the payload of those alone that are asked for it.
SELECT outbox_id, key, status, attempts, due, error_code,
       extract(epoch FROM now() - updated_at)::double precision,
       partition, "offset", biz_type,
       CASE WHEN outbox_id = ANY(%(bodies)s::bigint[]) THEN payload END,
       CASE WHEN created_at BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999'
            THEN (extract(epoch FROM created_at) * 1000)::bigint END
FROM (
    SELECT s.*, coalesce(s.next_retry_at <= now(), false) AS due,
           sum(pg_column_size(s.payload)) OVER (ORDER BY s.arrived)
               - pg_column_size(s.payload) AS before
    FROM outbox_foreign AS s
    WHERE s.open AND s.source = %(source)s AND s.topic = %(topic)s
      AND s.outbox_id = ANY(%(ids)s::bigint[])
) AS rows
WHERE coalesce(before, 0) < %(bytes)s
ORDER BY arrived;

-- foreign_heads --
-- The message that each of these conversations waits for.
SELECT s.key, s.partition, s.outbox_id, s.status, s.attempts, s.error_code,
       extract(epoch FROM s.next_retry_at)::double precision
FROM json_array_elements_text(%(keys)s::json) AS given (key)
CROSS JOIN LATERAL (
    SELECT * FROM outbox_foreign AS f
    WHERE f.open AND f.source = %(source)s AND f.topic = %(topic)s AND f.key = given.key
    ORDER BY f.arrived
    LIMIT 1
) AS s;

-- foreign_all_heads --
-- The same for every conversation of these partitions; skips from one conversation to the next,
-- however much is parked.
WITH RECURSIVE head AS (
    (SELECT key, partition, outbox_id, status, attempts, error_code, next_retry_at
     FROM outbox_foreign
     WHERE open AND source = %(source)s AND topic = %(topic)s
     ORDER BY key, arrived
     LIMIT 1)
    UNION ALL
    SELECT next.*
    FROM head
    CROSS JOIN LATERAL (
        SELECT s.key, s.partition, s.outbox_id, s.status, s.attempts, s.error_code, s.next_retry_at
        FROM outbox_foreign AS s
        WHERE s.open AND s.source = %(source)s AND s.topic = %(topic)s AND s.key > head.key
        ORDER BY s.key, s.arrived
        LIMIT 1
    ) AS next
)
SELECT key, partition, outbox_id, status, attempts, error_code,
       extract(epoch FROM next_retry_at)::double precision
FROM head
WHERE partition = ANY(%(partitions)s::integer[]);

-- foreign_biz_types_of --
-- What kinds of messages these are.
SELECT outbox_id, biz_type
FROM outbox_foreign
WHERE source = %(source)s AND outbox_id = ANY(%(ids)s::bigint[]);

-- foreign_newest_dead --
-- The newest dead letters of these partitions.
SELECT key, partition, outbox_id, attempts, error_code
FROM outbox_foreign
WHERE status = 'dead' AND source = %(source)s AND topic = %(topic)s
  AND partition = ANY(%(partitions)s::integer[])
ORDER BY outbox_id DESC
LIMIT %(most)s;

-- foreign_still_dead --
-- Which of these messages are dead.
SELECT outbox_id
FROM outbox_foreign
WHERE source = %(source)s AND outbox_id = ANY(%(ids)s::bigint[]) AND status = 'dead';
