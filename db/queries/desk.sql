-- dead_letters --
-- Dead messages that fit, without their text, oldest first; a filter that is null lets everything
-- through.
SELECT name, biz_type, topic, key, attempts, replays, error_code, error, fingerprint, held, since
FROM outbox_dead
WHERE (%(names)s::text[] IS NULL OR name = ANY(%(names)s::text[]))
  AND (%(source)s::text IS NULL OR source = %(source)s)
  AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s)
  AND (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(error)s::text IS NULL OR %(error)s IN (error_code, fingerprint))
  AND (%(since)s::timestamptz IS NULL OR since >= %(since)s)
ORDER BY source, outbox_id
LIMIT %(limit)s;

-- dead_groups --
-- The same, as one line for each kind of error, the most frequent first; the example is the one
-- that died first.
SELECT g.fingerprint, d.biz_type, d.error_code, g.messages, g.conversations, g.first, g.last,
       CASE d.source WHEN '' THEN d.outbox_id::text
            ELSE d.source || ':' || d.outbox_id END AS example
FROM (
    -- Conversation by conversation, as look_causes does.
    SELECT fingerprint, sum(messages)::bigint AS messages, count(*) AS conversations,
           min(first) AS first, max(last) AS last, min(oldest) AS oldest
    FROM (
        SELECT fingerprint, topic, key, count(*) AS messages, min(died_at) AS first,
               max(died_at) AS last, min(died) AS oldest
        FROM outbox_dead_letters
        WHERE (%(names)s::text[] IS NULL
               OR CASE source WHEN '' THEN outbox_id::text
                       ELSE source || ':' || outbox_id END = ANY(%(names)s::text[]))
          AND (%(source)s::text IS NULL OR source = %(source)s)
          AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s)
          AND (%(key)s::text IS NULL OR key = %(key)s)
          AND (%(error)s::text IS NULL OR %(error)s IN (error_code, fingerprint))
          AND (%(since)s::timestamptz IS NULL OR died_at >= %(since)s)
        GROUP BY fingerprint, topic, key
    ) AS conversations
    GROUP BY fingerprint
    ORDER BY messages DESC, fingerprint
    LIMIT %(limit)s
) AS g
JOIN outbox_dead_letters AS d ON d.died = g.oldest
ORDER BY g.messages DESC, g.fingerprint;

-- dead_in_order --
-- The same, conversation after conversation, each in its original order, so that a limit never
-- leaves out an earlier message: by arrival, else by place in the topic, else by id, as far as all
-- of the conversation's dead have one.
SELECT name
FROM (
    SELECT name, source, outbox_id, arrived, partition, "offset",
           min(outbox_id) OVER conversation AS first,
           bool_and(arrived IS NOT NULL) OVER conversation AS all_arrived,
           bool_and("offset" IS NOT NULL) OVER conversation AS all_placed
    FROM outbox_dead
    WHERE (%(names)s::text[] IS NULL OR name = ANY(%(names)s::text[]))
      AND (%(source)s::text IS NULL OR source = %(source)s)
      AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s)
      AND (%(key)s::text IS NULL OR key = %(key)s)
      AND (%(error)s::text IS NULL OR %(error)s IN (error_code, fingerprint))
      AND (%(since)s::timestamptz IS NULL OR since >= %(since)s)
    WINDOW conversation AS (PARTITION BY source, topic, key)
) AS dead
ORDER BY source, first, CASE WHEN all_arrived THEN arrived END,
         CASE WHEN all_placed THEN partition END,
         CASE WHEN all_placed THEN "offset" END, outbox_id
LIMIT %(limit)s;

-- dead_lock --
-- Those still dead, locked in the order of their ids: two operators never wait for each other in a
-- circle.
SELECT outbox_id, replays, updated_at, attempts, error_code, error,
       coalesce(source_id, outbox_id) AS body
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]) AND status = 'dead'
ORDER BY outbox_id
FOR UPDATE;

-- dead_replay --
-- Locked messages sent again in the order given: each as a new outbox row with the payload that
-- counts, or an edited one.  Each has its old place in the line of its conversation, unless one
-- that goes with it never had one (no worker had seen it), or an earlier one was replayed already
-- and has a later place: then all that hold nothing are lined up anew, before the one of them that
-- holds.
WITH again AS (
    INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of)
    SELECT root.biz_type, root.topic, root.key, coalesce(%(payload)s::json, source.payload),
           root.traceparent, root.id
    FROM unnest(%(ids)s::bigint[], %(bodies)s::bigint[])
         WITH ORDINALITY AS given (outbox_id, body, position)
    JOIN (SELECT * FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS root
      ON root.id = given.outbox_id
    JOIN (SELECT id, payload FROM outbox WHERE id = ANY(%(bodies)s::bigint[]) OFFSET 0) AS source
      ON source.id = given.body
    ORDER BY position
    RETURNING id, resend_of, topic, key
), drawn AS MATERIALIZED (
    SELECT again.*, nextval('outbox_arrived') AS arrived
    FROM again
    ORDER BY id
), placed AS (
    SELECT drawn.*, s.arrived AS had, s.topic IS NOT NULL AS holds,
           bool_or(s.arrived IS NULL) OVER conversation AS lacks,
           bool_or(s.topic IS NOT NULL) OVER rest AS leads, count(*) OVER rest AS rest
    FROM drawn
    JOIN (SELECT * FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]) OFFSET 0) AS s
      ON s.outbox_id = drawn.resend_of
    WINDOW conversation AS (PARTITION BY drawn.topic, drawn.key),
           rest AS (PARTITION BY drawn.topic, drawn.key ORDER BY drawn.id
                    ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)
), line AS (
    SELECT p.id, p.resend_of, p.topic, p.key,
           CASE
               WHEN p.holds THEN coalesce(p.had, p.arrived)
               WHEN p.lacks AND p.leads THEN (
                   SELECT min(o.arrived) FROM outbox_open AS o
                   WHERE o.topic = p.topic AND o.key = p.key
               ) - p.rest
               WHEN p.lacks OR EXISTS (
                   SELECT FROM outbox_open AS o
                   WHERE o.topic = p.topic AND o.key = p.key AND o.arrived > p.had
                     AND o.outbox_id < p.resend_of AND o.source_id IS NOT NULL
               ) THEN p.arrived
               ELSE p.had
           END AS arrived
    FROM placed AS p
)
UPDATE outbox_state AS s
SET status = 'replaying', source_id = line.id, attempts = 0, replays = s.replays + 1,
    topic = line.topic, key = line.key, arrived = line.arrived, next_retry_at = NULL,
    updated_at = now()
FROM line
WHERE s.outbox_id = ANY(%(ids)s::bigint[]) AND s.outbox_id + 0 = line.resend_of
RETURNING s.outbox_id, line.id;

-- replayable_among --
-- Those of these messages whose outbox row is there, with a text that counts and was not erased.
SELECT given.outbox_id
FROM unnest(%(ids)s::bigint[], %(bodies)s::bigint[]) AS given (outbox_id, body)
JOIN (SELECT id FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS root
  ON root.id = given.outbox_id
JOIN (
    SELECT id FROM outbox
    WHERE id = ANY(%(bodies)s::bigint[]) AND payload::text NOT LIKE '{"$erased"%%'
    OFFSET 0
) AS source ON source.id = given.body;

-- dead_discard --
-- Locked messages given up for good; a conversation they held goes on.
UPDATE outbox_state
SET status = 'discarded', topic = NULL, key = NULL, next_retry_at = NULL, updated_at = now()
WHERE outbox_id = ANY(%(ids)s::bigint[]);

-- body_of --
-- The outbox row whose text counts, if the message's fate has begun.
SELECT coalesce(source_id, outbox_id) FROM outbox_state WHERE outbox_id = %(outbox_id)s;

-- dead_payload --
-- The text that counts, and which outbox row holds it.
SELECT o.id, o.payload::text AS payload, o.biz_type, o.key
FROM outbox AS o
WHERE o.id = %(body)s;

-- statuses --
-- Where these messages stand, if their fate has begun.
SELECT outbox_id, status FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]);

-- statuses_lock --
-- Where these messages stand, if their fate has begun, and until this transaction ends.
SELECT outbox_id, status
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[])
ORDER BY outbox_id
FOR UPDATE;

-- note_action --
-- Who did what, and why.
INSERT INTO outbox_actions (who, act, outbox_id, what, why)
VALUES (%(who)s, %(act)s, %(outbox_id)s, %(what)s::jsonb, %(why)s);

-- waiting_conversations --
-- Conversations with open messages, the longest waiting first: what the first one of each is.
SELECT source, topic, key, count(*) AS open, (array_agg(outbox_id ORDER BY arrived))[1] AS head,
       (array_agg(status ORDER BY arrived))[1] AS status,
       (array_agg(error_code ORDER BY arrived))[1] AS error_code,
       min(since) AS since
FROM (
    SELECT '' AS source, topic, key, outbox_id, status, error_code, arrived,
           opened AS since
    FROM outbox_open
    UNION ALL
    SELECT source, topic, key, outbox_id, status, error_code, arrived, opened
    FROM outbox_foreign
    WHERE open
) AS open_messages
WHERE (%(key)s::text IS NULL OR key = %(key)s) AND (%(source)s::text IS NULL OR source = %(source)s)
GROUP BY source, topic, key
HAVING NOT %(held)s OR (array_agg(status ORDER BY arrived))[1] = 'dead'
ORDER BY since, topic, key
LIMIT %(limit)s;

-- holding --
-- Dead messages that hold this conversation.
SELECT outbox_id
FROM outbox_open
WHERE key = %(key)s AND status = 'dead' AND (%(topic)s::text IS NULL OR topic = %(topic)s);

-- held --
-- Those of these that are dead and hold their conversation, locked in the order of their ids.
SELECT outbox_id
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]) AND topic IS NOT NULL AND status = 'dead'
ORDER BY outbox_id
FOR UPDATE;

-- release --
-- They stay dead, and hold nothing any more.
UPDATE outbox_state SET topic = NULL, key = NULL, updated_at = now()
WHERE outbox_id = ANY(%(ids)s::bigint[]);
