-- lock_partition --
-- Alone in its statement, so that the next one sees what the partition's previous owner committed.
SELECT pg_advisory_xact_lock(hashtextextended(%(topic)s, %(partition)s));

-- open_keys --
-- Conversations that wait behind an open message; one probe of the partial index when nothing of the topic is open.
SELECT key
FROM json_array_elements_text(%(keys)s::json) AS given (key)
WHERE EXISTS (SELECT FROM outbox_state WHERE topic = %(topic)s)
  AND EXISTS (SELECT FROM outbox_state AS s WHERE s.topic = %(topic)s AND s.key = given.key);

-- outbox_rows --
-- The rows behind records that are broken, resent, or whose claim failed, with what is known of their fate.
SELECT o.id, o.biz_type, o.key, o.payload::text, o.created_at, s.status
FROM outbox AS o
LEFT JOIN outbox_state AS s ON s.outbox_id = o.id
WHERE o.id = ANY(%(ids)s::bigint[]);

-- claim --
-- Take these messages for this transaction; give back only those that are new and have an outbox row.
INSERT INTO outbox_state (outbox_id, status, partition, "offset", applied)
SELECT id, 'consumed', %(partition)s, "offset", nextval('outbox_applied')
FROM unnest(%(ids)s::bigint[], %(offsets)s::bigint[]) WITH ORDINALITY AS record (id, "offset", position)
WHERE EXISTS (SELECT FROM outbox AS o WHERE o.id = record.id)
ORDER BY position
ON CONFLICT (outbox_id) DO NOTHING
RETURNING outbox_id;

-- open --
-- Messages set aside on arrival, dead or parked; what has a fate already keeps it.
INSERT INTO outbox_state (outbox_id, status, partition, "offset", arrived, topic, key, error_code, error)
SELECT outbox_id, status, %(partition)s, "offset",
       CASE WHEN status = 'parked' THEN nextval('outbox_arrived') END,
       CASE WHEN status = 'parked' THEN %(topic)s END,
       CASE WHEN status = 'parked' THEN key END,
       error_code, error
FROM ROWS FROM (
         json_to_recordset(%(messages)s::json)
         AS (outbox_id bigint, status text, "offset" bigint, key text, error_code text, error text)
     ) WITH ORDINALITY AS m (outbox_id, status, "offset", key, error_code, error, position)
ORDER BY position
ON CONFLICT (outbox_id) DO NOTHING
RETURNING outbox_id;

-- set_aside --
-- Messages claimed by this transaction whose handler failed, and those behind them, in record order.
UPDATE outbox_state AS s
SET status = m.status, applied = NULL, arrived = m.arrived, topic = %(topic)s, key = m.key,
    attempts = m.attempts, error_code = m.error_code, error = m.error,
    next_retry_at = now() + m.delay * interval '1 second', updated_at = now()
FROM (
    SELECT given.*, nextval('outbox_arrived') AS arrived
    FROM json_to_recordset(%(messages)s::json)
         AS given (outbox_id bigint, status text, key text, attempts integer, error_code text, error text,
                   delay double precision)
) AS m
WHERE s.outbox_id = m.outbox_id
RETURNING s.outbox_id, extract(epoch FROM s.next_retry_at)::double precision;

-- reject --
-- What cannot be tied to an outbox row; a record that comes twice is one row.
INSERT INTO outbox_rejects (topic, partition, "offset", reason)
SELECT %(topic)s, %(partition)s, "offset", reason
FROM json_to_recordset(%(rejects)s::json) AS r ("offset" bigint, reason text)
ON CONFLICT (topic, partition, "offset") DO NOTHING;
