-- sweep_reach --
-- The floor of this relay, and the oldest id there is.
SELECT coalesce((SELECT floor FROM relay_position WHERE name = %(relay)s), 0), coalesce((SELECT min(id) FROM outbox), 0);

-- sweep_lost --
-- Published messages of a topic without a fate in a range of ids, each with its key and the id of its last record;
-- those sent again and perhaps under way are left out.
SELECT o.id, o.key,
       coalesce((SELECT max(again.id) FROM outbox AS again WHERE again.resend_of = o.id AND again.id > o.id), o.id)
FROM outbox AS o
WHERE o.id > %(after)s AND o.id <= %(upto)s AND o.resend_of IS NULL AND o.topic = %(topic)s
  AND NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = o.id)
  AND NOT EXISTS (SELECT FROM outbox AS again WHERE again.resend_of = o.id AND again.id > %(floor)s)
ORDER BY o.id
LIMIT %(most)s;

-- sweep_overdue --
-- First open messages of their conversations that should have moved long ago: the record that moves them is lost.
SELECT s.outbox_id, s.topic, s.key,
       coalesce(
           (SELECT max(again.id) FROM outbox AS again WHERE again.resend_of = s.outbox_id AND again.id > s.outbox_id),
           s.outbox_id)
FROM outbox_state AS s
WHERE s.topic IS NOT NULL
  AND CASE s.status
          WHEN 'retrying' THEN s.next_retry_at < now() - %(patience)s * interval '1 second'
          WHEN 'parked' THEN s.updated_at < now() - %(patience)s * interval '1 second'
          WHEN 'replaying' THEN s.updated_at < now() - %(patience)s * interval '1 second' AND s.source_id <= %(floor)s
          ELSE false
      END
  AND NOT EXISTS (
      SELECT FROM outbox_state AS e WHERE e.topic = s.topic AND e.key = s.key AND e.arrived < s.arrived)
  AND NOT EXISTS (SELECT FROM outbox AS again WHERE again.resend_of = s.outbox_id AND again.id > %(floor)s)
ORDER BY s.outbox_id
LIMIT %(most)s;

-- sweep_resend --
-- Send these again with the payload that counts; a replay under way is moved by the new record from now on.
WITH again AS (
    INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of)
    SELECT root.biz_type, root.topic, root.key, body.payload, root.traceparent, root.id
    FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS given (id, position)
    JOIN outbox AS root ON root.id = given.id
    LEFT JOIN outbox_state AS s ON s.outbox_id = root.id
    JOIN outbox AS body ON body.id = coalesce(s.source_id, root.id)
    WHERE s.outbox_id IS NULL OR s.status IN ('retrying', 'parked', 'replaying')
    ORDER BY position
    RETURNING id, resend_of
), moved AS (
    UPDATE outbox_state AS s
    SET source_id = CASE WHEN s.status = 'replaying' THEN again.id ELSE s.source_id END, updated_at = now()
    FROM again
    WHERE s.outbox_id = again.resend_of
)
SELECT id, resend_of FROM again;
