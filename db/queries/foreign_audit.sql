-- foreign_sources --
-- The systems that messages came from; skips from one to the next.
WITH RECURSIVE known AS (
    (SELECT source FROM outbox_foreign ORDER BY source LIMIT 1)
    UNION ALL
    SELECT (SELECT f.source FROM outbox_foreign AS f WHERE f.source > known.source ORDER BY f.source
            LIMIT 1)
    FROM known
    WHERE known.source IS NOT NULL
)
SELECT source FROM known WHERE source IS NOT NULL;

-- foreign_until --
-- Where a range of so many messages ends.
SELECT outbox_id
FROM outbox_foreign
WHERE source = %(source)s AND outbox_id > %(after)s
ORDER BY outbox_id
OFFSET %(width)s
LIMIT 1;

-- foreign_count --
-- How many there are in a range, and the first one that was persisted here: what is below it may
-- have been forgotten since.  Where settled ones are forgotten after so many days it is the first
-- one that was sent since then: one before it may be left alone of its time, replayed later.
SELECT count(*),
       min(outbox_id) FILTER (
           WHERE status = 'consumed' AND applied IS NOT NULL
           AND (%(days)s::double precision IS NULL
                OR created_at > now() AT TIME ZONE 'UTC' - %(days)s * interval '1 day'))
FROM outbox_foreign
WHERE source = %(source)s AND outbox_id > %(after)s AND outbox_id <= %(until)s;

-- foreign_faults --
-- State rows that are wrong by themselves; one without an offset was written by an operator, not by
-- a worker.
SELECT outbox_id, fault, status
FROM (
    SELECT outbox_id, status,
           CASE
               WHEN (status = 'consumed') <> (applied IS NOT NULL)
               AND "offset" IS NOT NULL THEN 'flipped'
               WHEN open AND status IN ('consumed', 'discarded') THEN 'blocking'
               WHEN status IN ('retrying', 'parked')
               AND (NOT open OR arrived IS NULL OR topic IS NULL) THEN 'forgotten'
               WHEN status = 'retrying' AND next_retry_at IS NULL THEN 'forgotten'
           END AS fault
    FROM outbox_foreign
    WHERE source = %(source)s AND outbox_id > %(after)s AND outbox_id <= %(until)s
) AS judged
WHERE fault IS NOT NULL
ORDER BY outbox_id;

-- foreign_stuck --
-- The first open message of each conversation, if it should have moved by now; a replay is moved by
-- its record.
SELECT head.source || ':' || head.outbox_id, head.status, head.topic, head.key, NULL::bigint,
       extract(epoch FROM now() - coalesce(head.next_retry_at,
                                           head.updated_at))::double precision AS overdue
FROM outbox_foreign AS head
WHERE head.open AND head.status NOT IN ('dead', 'replaying')
  AND coalesce(head.next_retry_at, head.updated_at) < now() - %(grace)s * interval '1 second'
  AND NOT EXISTS (
      SELECT FROM outbox_foreign AS before
      WHERE before.open AND before.source = head.source AND before.topic = head.topic
        AND before.key = head.key
        AND before.arrived < head.arrived
  )
ORDER BY head.source, head.outbox_id
LIMIT 10000;

-- audit_envelopes --
-- How far the last audit has read each envelope topic.
SELECT report -> 'envelopes' FROM outbox_audits ORDER BY id DESC LIMIT 1;

-- foreign_first_offset --
-- The first record of a partition of an envelope topic that workers know: what is before it was
-- taken over from others.  Offsets of a topic that had the name before say nothing of it; one that
-- is back, after Kafka had failed over, is no new one.
WITH began AS (
    SELECT coalesce(
        (SELECT t.noted_at FROM outbox_topics AS t
         WHERE t.topic = %(topic)s AND t.topic_id = %(topic_id)s
           AND EXISTS (SELECT FROM outbox_topics AS o
                       WHERE o.topic = t.topic AND o.noted_at < t.noted_at)), '-infinity') AS at
)
SELECT min(first)
FROM (
    SELECT min("offset") AS first FROM outbox_foreign
    WHERE topic = %(topic)s AND partition = %(partition)s AND updated_at >= (SELECT at FROM began)
    UNION ALL
    SELECT min("offset") FROM outbox_rejects
    WHERE topic = %(topic)s AND partition = %(partition)s AND at >= (SELECT at FROM began)
) AS known;

-- foreign_stateless --
-- Those of these messages of another system that have no state.
SELECT given.id
FROM unnest(%(ids)s::bigint[]) AS given (id)
WHERE NOT EXISTS (SELECT FROM outbox_foreign AS f
                  WHERE f.source = %(source)s AND f.outbox_id = given.id)
ORDER BY given.id;

-- audit_unrejected --
-- Those of these records that no rejection covers; as in `foreign_first_offset`.
WITH began AS (
    SELECT coalesce(
        (SELECT t.noted_at FROM outbox_topics AS t
         WHERE t.topic = %(topic)s AND t.topic_id = %(topic_id)s
           AND EXISTS (SELECT FROM outbox_topics AS o
                       WHERE o.topic = t.topic AND o.noted_at < t.noted_at)), '-infinity') AS at
)
SELECT given."offset"
FROM unnest(%(offsets)s::bigint[]) AS given ("offset")
WHERE NOT EXISTS (
    SELECT FROM outbox_rejects AS r
    WHERE r.topic = %(topic)s AND r.partition = %(partition)s AND r."offset" <= given."offset"
      AND coalesce(r.last_offset, r."offset") >= given."offset"
      AND r.at >= (SELECT at FROM began))
ORDER BY given."offset";
