-- audit_bounds --
-- The oldest outbox id, the newest one drawn, and the floor: all between are published or were
-- rolled back.
SELECT coalesce((SELECT min(id) FROM outbox), 1) AS first,
       (SELECT greatest(last_value, (SELECT max(id) FROM outbox)) FROM outbox_id_seq) AS last,
       coalesce((SELECT max(floor) FROM relay_position), 0) AS floor;

-- audit_retired --
-- Ranges of ids that are gone, but for what was not settled.
SELECT first_id, last_id FROM outbox_retired ORDER BY first_id;

-- audit_next --
-- The first message after an id.
SELECT min(id) FROM outbox WHERE id > %(after)s;

-- audit_rows --
-- The messages of a range as the checks want them; a table of this session only. `line` is the
-- conversation, `counts` marks those that must be in order: persisted, and neither replayed nor
-- sent again.  `life` is that of a topic that began anew: offsets of two of them say nothing of
-- each other.  A message that was there before a new life and was persisted in it may have its
-- offset from either: it has a life of its own.
CREATE TEMP TABLE audit_rows (
    id bigint, line bigint, topic text, partition integer, "offset" bigint, applied bigint,
    status text, source_id bigint, resent bigint, replays smallint, counts boolean, lenient boolean,
    life bigint, fault text
);

-- audit_before --
-- Those of an earlier range, to compare with.
CREATE TEMP TABLE audit_before (LIKE audit_rows);

-- audit_empty --
-- Before a range is read.
TRUNCATE audit_rows;

-- audit_forget --
-- Before another range becomes the earlier one.
TRUNCATE audit_before;

-- audit_remember --
-- The range that was read becomes the earlier one.
INSERT INTO audit_before SELECT * FROM audit_rows WHERE counts;

-- audit_read --
-- The messages of a range, or some of it, with what is wrong with a state row by itself.
INSERT INTO audit_rows
SELECT o.id, hashtextextended(o.key, hashtext(o.topic)), o.topic, s.partition, s."offset",
       s.applied, s.status, s.source_id, r.resent, s.replays,
       s.status = 'consumed' AND s.applied IS NOT NULL AND s."offset" IS NOT NULL AND s.replays = 0
       AND r.resent IS NULL, o.topic = ANY(%(lenient)s::text[]),
       CASE WHEN o.topic = ANY(%(lenient)s::text[]) THEN (
           SELECT CASE
                      WHEN count(*) FILTER (WHERE t.noted_at > o.created_at AT TIME ZONE 'UTC') = 0
                      THEN count(*)
                      ELSE -o.id
                  END
           FROM outbox_topics AS t
           WHERE t.topic = o.topic AND t.noted_at <= s.updated_at
       ) ELSE 0 END,
       CASE
           WHEN s.status IS NULL THEN NULL
           WHEN (s.status = 'consumed') <> (s.applied IS NOT NULL) THEN 'flipped'
           WHEN s.status IN ('consumed', 'discarded') AND s.topic IS NOT NULL THEN 'blocking'
           WHEN s.status IN ('retrying', 'parked', 'replaying')
                AND (s.topic IS NULL OR s.key IS NULL OR s.arrived IS NULL) THEN 'forgotten'
           WHEN s.status = 'retrying' AND s.next_retry_at IS NULL THEN 'forgotten'
           WHEN s.status = 'replaying' AND s.source_id IS NULL THEN 'bad_source'
           WHEN s.topic <> o.topic OR s.key <> o.key THEN 'misplaced'
       END
FROM outbox AS o
LEFT JOIN outbox_state AS s
  ON s.outbox_id = o.id AND s.outbox_id > %(after)s AND s.outbox_id <= %(until)s
LEFT JOIN (
    SELECT resend_of, max(id) AS resent
    FROM outbox
    WHERE resend_of > %(after)s AND resend_of <= %(until)s
    GROUP BY resend_of
) AS r ON r.resend_of = o.id
WHERE o.id > %(after)s AND o.id <= %(until)s AND o.resend_of IS NULL
  AND (%(ids)s::bigint[] IS NULL OR o.id = ANY(%(ids)s::bigint[]));

-- audit_faults --
-- State rows that are wrong by themselves, or whose replay is not theirs, where that is not gone.
SELECT id, fault, status FROM audit_rows WHERE fault IS NOT NULL
UNION ALL
SELECT a.id, 'bad_source', a.status
FROM audit_rows AS a
LEFT JOIN LATERAL (
    SELECT true AS known FROM outbox AS o WHERE o.id = a.source_id AND o.resend_of = a.id LIMIT 1
) AS source ON true
WHERE source.known IS NULL
  AND (a.source_id > %(retired)s
       OR a.source_id IS NOT NULL
          AND a.status IN ('retrying', 'parked', 'replaying', 'dead'));

-- audit_rowless --
-- States of messages that there are not.
SELECT s.outbox_id, s.status
FROM outbox_state AS s
LEFT JOIN outbox AS o
  ON o.id = s.outbox_id AND o.resend_of IS NULL AND o.id > %(after)s AND o.id <= %(until)s
WHERE s.outbox_id > %(after)s AND s.outbox_id <= %(until)s AND o.id IS NULL
  AND (%(ids)s::bigint[] IS NULL OR s.outbox_id = ANY(%(ids)s::bigint[]));

-- audit_open --
-- Open messages of which outbox_open says something else than their states, or nothing, and what is
-- there of none.
SELECT coalesce(s.outbox_id, o.outbox_id), s.status
FROM (
    SELECT * FROM outbox_state
    WHERE outbox_id > %(after)s AND outbox_id <= %(until)s AND topic IS NOT NULL
      AND (%(ids)s::bigint[] IS NULL OR outbox_id = ANY(%(ids)s::bigint[]))
) AS s
FULL JOIN (
    SELECT * FROM outbox_open
    WHERE outbox_id > %(after)s AND outbox_id <= %(until)s
      AND (%(ids)s::bigint[] IS NULL OR outbox_id = ANY(%(ids)s::bigint[]))
) AS o ON o.outbox_id = s.outbox_id
WHERE (s.topic, s.key, s.arrived, s.source_id, s.next_retry_at, s.updated_at, s.partition,
       s.attempts, s.status, s.error_code)
      IS DISTINCT FROM
      (o.topic, o.key, o.arrived, o.source_id, o.due, o.since, o.partition, o.attempts, o.status,
       o.error_code);

-- audit_open_ids --
-- Some of what is open.
SELECT outbox_id FROM outbox_open WHERE outbox_id > %(after)s ORDER BY outbox_id LIMIT %(limit)s;

-- audit_resends --
-- Rows that send again what is no message, or one of another conversation; of one that is gone
-- nothing can be said.
SELECT o.id, o.resend_of
FROM outbox AS o
LEFT JOIN outbox AS root ON root.id = o.resend_of
WHERE o.id > %(after)s AND o.id <= %(until)s AND o.resend_of >= %(first)s
  AND (%(ids)s::bigint[] IS NULL OR o.id = ANY(%(ids)s::bigint[]))
  AND (root.id IS NULL AND o.resend_of > %(retired)s OR root.resend_of IS NOT NULL
       OR (root.biz_type, root.topic, root.key) <> (o.biz_type, o.topic, o.key));

-- audit_order --
-- Messages persisted before one that was delivered earlier in their conversation; ids decide too
-- where a topic began anew.
SELECT id, earlier
FROM (
    SELECT id, fresh, applied, lenient, lag(id) OVER conversation AS earlier,
           lag(fresh) OVER conversation AS earlier_fresh,
           lag(applied) OVER conversation AS earlier_applied
    FROM (
        SELECT true AS fresh, id, line, partition, "offset", applied, lenient, life FROM audit_rows
        WHERE counts
        UNION ALL
        SELECT false AS fresh, id, line, partition, "offset", applied, lenient, life
        FROM audit_before
    ) AS both_ranges
    WINDOW conversation AS (PARTITION BY line, partition, life ORDER BY "offset", id)
) AS steps
WHERE applied < earlier_applied AND (fresh OR earlier_fresh) AND (NOT lenient OR earlier < id);

-- audit_conversations --
-- Which conversations these messages are of: a line is a hash of it, and two may have one.
SELECT id, topic, key FROM outbox WHERE id = ANY(%(ids)s::bigint[]);

-- audit_keys --
-- Rows whose key is not what the payload's key field says. Equal as text they nearly always are:
-- the function is for the rest.
SELECT o.id, t.key_field, octet_length(o.key)
FROM outbox AS o
JOIN outbox_biz_types AS t ON t.biz_type = o.biz_type AND t.key_field IS NOT NULL
WHERE o.id > %(after)s AND o.id <= %(until)s
  AND (o.payload -> t.key_field)::text IS DISTINCT FROM to_json(o.key)::text
  AND o.payload::text NOT LIKE '{"$erased"%%'
  AND outbox_key_fits(o.payload, t.key_field, o.key) IS FALSE
ORDER BY o.id;

-- audit_keys_with_care --
-- Among payloads of which PostgreSQL cannot read every one: by the function alone.
SELECT o.id, t.key_field, octet_length(o.key)
FROM outbox AS o
JOIN outbox_biz_types AS t ON t.biz_type = o.biz_type AND t.key_field IS NOT NULL
WHERE o.id > %(after)s AND o.id <= %(until)s
  AND outbox_key_fits(o.payload, t.key_field, o.key) IS FALSE
  AND o.payload::text NOT LIKE '{"$erased"%%'
ORDER BY o.id;

-- audit_places --
-- Two messages with one place in the topic.
SELECT max(id), min(id)
FROM audit_rows
WHERE "offset" >= 0 AND NOT lenient
GROUP BY hashtext(topic), partition, "offset"
HAVING count(*) > 1;

-- audit_moved --
-- Messages of one conversation in two partitions.
SELECT id, earlier
FROM (
    SELECT id, partition, lag(partition) OVER conversation AS before,
           lag(id) OVER conversation AS earlier
    FROM audit_rows
    WHERE counts AND line IN (
        SELECT line FROM audit_rows WHERE counts GROUP BY line
        HAVING min(partition) <> max(partition)
    )
    WINDOW conversation AS (PARTITION BY line ORDER BY id)
) AS steps
WHERE partition <> before;

-- audit_reach --
-- How far the range reaches in each partition.
SELECT topic, partition, min(applied), max(applied), min("offset"), max("offset")
FROM audit_rows
WHERE counts
GROUP BY topic, partition;

-- audit_counts --
-- How many messages were read, and how many were persisted late for a known reason: replayed, or
-- sent again and overtaken.
SELECT (SELECT count(*) FROM audit_rows),
       (SELECT count(*) FROM audit_rows WHERE status = 'consumed' AND replays > 0),
       count(*) FILTER (WHERE status = 'consumed' AND replays = 0 AND resent IS NOT NULL
                        AND applied > overtaken_by)
FROM (
    SELECT a.*, min(a.applied) OVER (
               PARTITION BY a.line ORDER BY a.id DESC
               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
           ) AS overtaken_by
    FROM audit_rows AS a
    WHERE a.line IN (SELECT line FROM audit_rows WHERE resent IS NOT NULL)
) AS counted;

-- audit_unsettled --
-- Messages that the next audit has to look at again.
SELECT id FROM audit_rows WHERE status IS NULL OR status NOT IN ('consumed', 'discarded');

-- audit_ids --
-- The messages that were read.
SELECT id FROM audit_rows ORDER BY id;

-- audit_unclaimed --
-- Messages without a state: where their record has to be, whether it was sent again, whether that
-- was long ago, and of which kind they are.
SELECT a.id, o.topic, o.key, a.resent,
       CASE WHEN o.created_at BETWEEN '1970-01-01' AND '9999-12-31'
            THEN (extract(epoch FROM o.created_at) * 1000)::bigint ELSE 0 END,
       coalesce((SELECT r.created_at FROM outbox AS r WHERE r.id = a.resent), o.created_at)
           < (now() AT TIME ZONE 'UTC') - %(age)s * interval '1 second',
       o.biz_type
FROM audit_rows AS a
JOIN outbox AS o ON o.id = a.id
WHERE a.status IS NULL
ORDER BY a.id
LIMIT %(limit)s;

-- audit_heads --
-- The first open message of each conversation, if it should have moved by now; a replay is moved by
-- its record.
SELECT head.outbox_id, head.status, head.topic, head.key, head.source_id,
       extract(epoch FROM now() - coalesce(head.due, head.since))::double precision AS overdue
FROM outbox_open AS head
WHERE head.status NOT IN ('dead', 'replaying')
  AND coalesce(head.due, head.since) < now() - %(grace)s * interval '1 second'
  AND NOT EXISTS (
      SELECT FROM outbox_open AS before
      WHERE before.topic = head.topic AND before.key = head.key AND before.arrived < head.arrived
  )
ORDER BY head.outbox_id
LIMIT 10000;

-- audit_unpublished --
-- Rows of a range above the floor that were written long ago, and that nobody has persisted all the
-- same: behind a floor that an open transaction holds, rows are published and consumed. What sends
-- again waits until its message has a state, or waits for another row.
SELECT o.id, o.resend_of,
       floor(extract(epoch FROM (now() AT TIME ZONE 'UTC')
                                - greatest(o.created_at, '1970-01-01')))::bigint AS waited
FROM outbox AS o
WHERE o.id > %(after)s AND o.id <= %(until)s AND o.resend_of IS NULL
  AND o.created_at < (now() AT TIME ZONE 'UTC') - %(age)s * interval '1 second'
  AND NOT EXISTS (
      SELECT FROM outbox_state AS s
      WHERE s.outbox_id = o.id AND s.outbox_id > %(after)s AND s.outbox_id <= %(until)s)
UNION ALL
SELECT o.id, o.resend_of,
       floor(extract(epoch FROM (now() AT TIME ZONE 'UTC')
                                - greatest(o.created_at, '1970-01-01')))::bigint AS waited
FROM outbox AS o
LEFT JOIN LATERAL (
    SELECT s.status, s.source_id FROM outbox_state AS s WHERE s.outbox_id = o.resend_of LIMIT 1
) AS state ON true
WHERE o.id > %(after)s AND o.id <= %(until)s AND o.resend_of IS NOT NULL
  AND o.created_at < (now() AT TIME ZONE 'UTC') - %(age)s * interval '1 second'
  AND (state.status IS NULL OR state.status = 'replaying' AND state.source_id = o.id)
ORDER BY id
LIMIT %(most)s;

-- audit_stateless --
-- Those of these messages that have no state yet.
SELECT given.id
FROM unnest(%(ids)s::bigint[]) AS given (id)
WHERE NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = given.id)
ORDER BY given.id;

-- audit_still_replaying --
-- Those of these messages that still wait for the same record.
SELECT o.outbox_id
FROM unnest(%(ids)s::bigint[], %(sources)s::bigint[]) AS given (id, source)
JOIN outbox_open AS o
  ON o.outbox_id = given.id AND o.status = 'replaying' AND o.source_id = given.source
ORDER BY o.outbox_id;

-- audit_relays --
-- For how many seconds every relay is silent, null where none has ever led; and whether one of the
-- newest rows above the floor waits for one.
SELECT (SELECT extract(epoch FROM now() - max(heartbeat))::double precision FROM relay_position),
       EXISTS (
           SELECT FROM (SELECT id FROM outbox WHERE id > %(floor)s AND resend_of IS NULL
                        ORDER BY id DESC LIMIT 1000) AS o
           WHERE NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = o.id));

-- audit_replays --
-- Some of the messages that wait for a record that was published, and whether that was long ago.
SELECT outbox_id, topic, key, source_id, since < now() - %(age)s * interval '1 second'
FROM outbox_open
WHERE status = 'replaying' AND source_id <= %(floor)s AND outbox_id > %(after)s
ORDER BY outbox_id
LIMIT %(limit)s;

-- audit_off_the_end --
-- Messages whose place in the topic is behind its end.
SELECT s.outbox_id
FROM outbox_state AS s
JOIN outbox AS o ON o.id = s.outbox_id
WHERE s.outbox_id > %(after)s AND s.outbox_id <= %(until)s AND o.topic = %(topic)s
  AND s.partition = %(partition)s
  AND s."offset" >= %(end)s
ORDER BY s.outbox_id
LIMIT 1000;

-- audited_ranges --
-- What was looked at, in order.
SELECT first_id - 1 AS after, last_id AS until, reach FROM outbox_audit_ranges ORDER BY first_id;

-- audited_anew --
-- A full audit begins with nothing.
WITH forgotten AS (DELETE FROM outbox_audit_ranges RETURNING first_id)
DELETE FROM outbox_audit_left;

-- audited_until --
-- What was looked at beyond this id is looked at again.
DELETE FROM outbox_audit_ranges WHERE last_id > %(until)s;

-- audited --
-- A range was looked at; one that goes on from it makes it longer.
INSERT INTO outbox_audit_ranges (first_id, last_id, reach)
VALUES (%(first)s, %(until)s, %(reach)s::jsonb)
ON CONFLICT (first_id) DO UPDATE SET last_id = excluded.last_id, reach = excluded.reach, at = now();

-- audit_settled --
-- These need not be looked at again.
DELETE FROM outbox_audit_left WHERE outbox_id = ANY(%(ids)s::bigint[]);

-- audit_leave --
-- These have to be looked at again.
INSERT INTO outbox_audit_left (outbox_id)
SELECT unnest(%(ids)s::bigint[])
ON CONFLICT (outbox_id) DO NOTHING;

-- audit_left --
-- Some of those to be looked at again.
SELECT outbox_id FROM outbox_audit_left WHERE outbox_id > %(after)s ORDER BY outbox_id
LIMIT %(limit)s;

-- audit_left_count --
-- How many there are.
SELECT count(*) FROM outbox_audit_left;

-- audit_report --
-- What an audit found, for the pages and for later.
INSERT INTO outbox_audits (seconds, complete, messages, wrong, report)
VALUES (%(seconds)s, %(complete)s, %(messages)s, %(wrong)s, %(report)s::jsonb);

-- audit_resend --
-- Lost messages sent again: roots below the floor without a state, and not on their way again
-- already.
INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of)
SELECT o.biz_type, o.topic, o.key, o.payload, o.traceparent, o.id
FROM outbox AS o
WHERE o.id = ANY(%(ids)s::bigint[]) AND o.resend_of IS NULL AND o.id <= %(floor)s
  AND NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = o.id)
  AND NOT EXISTS (SELECT FROM outbox AS r WHERE r.resend_of = o.id AND r.id > %(floor)s)
ORDER BY o.id
RETURNING resend_of;

-- audit_lock_replays --
-- Replays whose record was lost, if they still wait for it.
SELECT outbox_id
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]) AND status = 'replaying' AND source_id <= %(floor)s
ORDER BY outbox_id
FOR UPDATE;

-- audit_resend_replays --
-- The same payload once more, and the state waits for that row now.
WITH again AS (
    INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of)
    SELECT o.biz_type, o.topic, o.key, o.payload, o.traceparent, s.outbox_id
    FROM outbox_state AS s
    JOIN outbox AS o ON o.id = s.source_id
    WHERE s.outbox_id = ANY(%(ids)s::bigint[])
    ORDER BY s.arrived
    RETURNING id, resend_of
)
UPDATE outbox_state AS s
SET source_id = again.id, updated_at = now()
FROM again
WHERE s.outbox_id = again.resend_of
RETURNING s.outbox_id;
