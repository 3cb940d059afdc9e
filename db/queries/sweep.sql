-- sweep_reach --
-- The floor of this relay, and the newest id that was drawn.
SELECT coalesce((SELECT floor FROM relay_position WHERE name = %(relay)s), 0),
       last_value - (NOT is_called)::int
FROM outbox_id_seq;

-- sweep_lost --
-- Published messages of a topic without a fate in a range of ids, each with its key and the id of
-- its last record; those sent again and perhaps under way are left out.  What is sent again is
-- behind what it sends.
SELECT o.id, o.key,
       coalesce((SELECT max(again.id) FROM outbox AS again
                 WHERE again.resend_of = o.id AND again.id > o.id AND again.id > %(after)s
                   AND again.id <= %(newest)s), o.id)
FROM outbox AS o
WHERE o.id > %(after)s AND o.id <= %(upto)s AND o.resend_of IS NULL AND o.topic = %(topic)s
  AND NOT EXISTS (
      SELECT FROM outbox_state AS s
      WHERE s.outbox_id = o.id AND s.outbox_id > %(after)s AND s.outbox_id <= %(upto)s)
  AND NOT EXISTS (
      SELECT FROM outbox AS again
      WHERE again.resend_of = o.id AND again.id > %(floor)s AND again.id > %(after)s
        AND again.id <= %(newest)s)
ORDER BY o.id
LIMIT %(most)s;

-- sweep_overdue --
-- First open messages of their conversations that should have moved long ago: the record that moves
-- them is lost. Of each of these topics some, behind an id.
SELECT s.outbox_id, s.topic, s.key
FROM unnest(%(topics)s::text[], %(afters)s::bigint[]) AS given (topic, after)
CROSS JOIN LATERAL (
    SELECT s.outbox_id, s.topic, s.key
    FROM outbox_open AS s
    WHERE s.topic = given.topic AND s.outbox_id > given.after
      AND CASE s.status
              WHEN 'retrying' THEN s.due < now() - %(patience)s * interval '1 second'
              WHEN 'parked' THEN s.since < now() - %(patience)s * interval '1 second'
              WHEN 'replaying' THEN s.since < now() - %(patience)s * interval '1 second'
              AND s.source_id <= %(floor)s
              ELSE false
          END
      AND NOT EXISTS (
          SELECT FROM outbox_open AS e
          WHERE e.topic = s.topic AND e.key = s.key AND e.arrived < s.arrived)
    ORDER BY s.outbox_id
    LIMIT %(most)s
) AS s
ORDER BY s.outbox_id;

-- sweep_resent --
-- The last record of each of these messages that was sent again.
SELECT resend_of, max(id)
FROM outbox
WHERE resend_of = ANY(%(ids)s::bigint[]) AND id > %(after)s AND id <= %(newest)s
GROUP BY resend_of;

-- sources --
-- The rows whose payloads count for these messages, where they are not their own.
SELECT source_id FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]) AND source_id IS NOT NULL;

-- sweep_resend --
-- Send these again with the payload that counts; a replay under way is moved by the new record from
-- now on, unless it was replaced while this waited for it.
WITH copied AS MATERIALIZED (
    SELECT outbox_id, source_id FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[])
), again AS (
    INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of)
    SELECT root.biz_type, root.topic, root.key, body.payload, root.traceparent, root.id
    FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS given (id, position)
    JOIN (SELECT * FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS root
      ON root.id = given.id
    LEFT JOIN (SELECT * FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]) OFFSET 0) AS s
      ON s.outbox_id = root.id
    JOIN (SELECT id, payload FROM outbox WHERE id = ANY(%(bodies)s::bigint[]) OFFSET 0) AS body
      ON body.id = coalesce(s.source_id, root.id)
    WHERE s.outbox_id IS NULL OR s.status IN ('retrying', 'parked', 'replaying')
    ORDER BY position
    RETURNING id, resend_of
), moved AS (
    UPDATE outbox_state AS s
    SET source_id = CASE WHEN s.status = 'replaying' THEN again.id ELSE s.source_id END,
        updated_at = now()
    FROM again
    JOIN copied ON copied.outbox_id = again.resend_of
    WHERE s.outbox_id = ANY(%(ids)s::bigint[]) AND s.outbox_id + 0 = again.resend_of
      AND s.source_id IS NOT DISTINCT FROM copied.source_id
)
SELECT id, resend_of FROM again;

-- sweep_early --
-- What was set aside in a time that has not come, by a server whose clock was ahead, and whether
-- this role may mend it in messages of other systems.
SELECT array(
           SELECT outbox_id
           FROM outbox_open
           WHERE since > now() + interval '1 minute'
             AND status IN ('retrying', 'parked', 'replaying')
           ORDER BY outbox_id
           LIMIT %(most)s),
       has_column_privilege('outbox_foreign', 'next_retry_at', 'UPDATE');

-- sweep_make_due --
-- Those of these messages are due now, or they would wait as long as the clock went back. What
-- somebody else has in hand is not waited for.
UPDATE outbox_state AS s
SET next_retry_at = CASE WHEN s.status = 'retrying' THEN now() END, updated_at = now()
FROM (
    SELECT outbox_id
    FROM outbox_state
    WHERE outbox_id = ANY(%(ids)s::bigint[]) AND status IN ('retrying', 'parked', 'replaying')
      AND updated_at > now() + interval '1 minute'
    ORDER BY outbox_id
    FOR UPDATE SKIP LOCKED
) AS early
WHERE s.outbox_id = ANY(%(ids)s::bigint[]) AND s.outbox_id + 0 = early.outbox_id
RETURNING s.outbox_id;

-- sweep_make_foreign_due --
-- The same of messages of other systems.
UPDATE outbox_foreign AS f
SET next_retry_at = CASE WHEN f.status = 'retrying' THEN now() END, updated_at = now()
WHERE (f.source, f.outbox_id) IN (
    SELECT source, outbox_id
    FROM outbox_foreign
    WHERE open AND status IN ('retrying', 'parked') AND updated_at > now() + interval '1 minute'
    ORDER BY source, outbox_id
    LIMIT %(most)s
    FOR UPDATE SKIP LOCKED)
RETURNING f.outbox_id;
