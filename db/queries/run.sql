-- lock_partitions --
-- Alone in its statement, so that the next one sees what the partitions' previous owners committed.
-- The session's name is another one until this transaction ends: the server tells its client of
-- that by itself, whoever ends it. It says for how long the session may say nothing.
SELECT pg_advisory_xact_lock(hashtextextended(%(topic)s, given.partition)),
       set_config('application_name',
                  %(session)s || current_setting('idle_in_transaction_session_timeout'), true)
FROM unnest(%(partitions)s::bigint[]) AS given (partition);

-- end_vanished --
-- End each session of a worker's that says nothing in a run for longer than it says it may, and for
-- how many seconds it was silent. The server waits for the rest of what it was sent, which has no
-- limit, or its limit was passed over: it would keep the locks for ever.
SELECT pid, extract(epoch FROM clock_timestamp() - state_change)::double precision AS seconds,
       pg_terminate_backend(pid) AS ended
FROM pg_stat_activity,
     LATERAL regexp_match(application_name, 'in a run, silent for at most (\d+(ms|s|min|h|d))$')
          AS given (most)
WHERE datname = current_database() AND usename = session_user AND wait_event = 'ClientRead'
  AND xact_start IS NOT NULL
  AND state_change < clock_timestamp() - most[1]::interval - make_interval(secs => %(grace)s);

-- by_index --
-- The plan of the next statement is made while a partition may be nearly empty, and has to be good
-- when it is full.
SET LOCAL enable_seqscan = off;

-- probe --
-- For how many seconds it was asked whether anything of this topic is open: under an old snapshot
-- what was settled long ago is waded through.  And no plan of what follows reads a whole table.
SELECT extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision,
       set_config('enable_seqscan', 'off', true)
FROM (
    SELECT (SELECT true FROM outbox_open WHERE topic = %(topic)s ORDER BY key, arrived
            LIMIT 1) AS waits OFFSET 0
) AS probed
WHERE waits IS NULL OR waits;

-- as_planned --
-- What follows is planned as the server is told to.
SET LOCAL enable_seqscan TO DEFAULT;

-- claim_all --
-- Take these messages for this transaction if every one is new and its outbox row's; otherwise
-- none, and `claim` says which. Nearly always they are, and asking that once for all costs half of
-- asking it row by row: ON CONFLICT alone is a quarter. While anything of the topic is open, only
-- what is `%(checked)s` to wait for nothing is taken.  The first and the last id say which
-- partitions to look at; the ids themselves are hidden from the planner, which would weigh each one
-- of them. One digest over keys and times says that every record is its row's.  It can be taken
-- apart in one way only: no key has a byte 0 or 255, and each time begins with one of them until
-- the year 4283.
INSERT INTO outbox_state (outbox_id, status, partition, "offset", applied)
SELECT id, 'consumed', partition, "offset", nextval('outbox_applied')
FROM unnest(%(ids)s::bigint[], %(partitions)s::integer[], %(offsets)s::bigint[])
     WITH ORDINALITY AS record (id, partition, "offset", position)
WHERE (%(checked)s OR (SELECT true FROM outbox_open WHERE topic = %(topic)s ORDER BY key, arrived
                       LIMIT 1) IS NULL)
  AND NOT EXISTS (
      SELECT FROM outbox_state
      WHERE outbox_id BETWEEN %(first)s AND %(last)s
        AND outbox_id = ANY((SELECT %(ids)s::bigint[])::bigint[]))
  AND (SELECT md5(string_agg(convert_to(key, 'UTF8') || timestamp_send(created_at), '' ORDER BY id))
       FROM outbox
       WHERE id BETWEEN %(first)s AND %(last)s AND id = ANY((SELECT %(ids)s::bigint[])::bigint[])
         AND topic = %(topic)s AND resend_of IS NULL)
      = %(digest)s
ORDER BY position;

-- claim --
-- Take those of these messages for this transaction that are new and their outbox rows', and give
-- them back; of those that are `known` to be, only that the row is there is asked.
-- One probe when nothing of the topic is open; otherwise only what is `%(checked)s` to wait for
-- nothing is taken.  A scalar subquery is one probe of an index a record, whatever the planner
-- believes; for EXISTS it likes to read the whole table.
INSERT INTO outbox_state (outbox_id, status, partition, "offset", applied)
SELECT id, 'consumed', partition, "offset", nextval('outbox_applied')
FROM ROWS FROM (
         json_to_recordset(%(records)s::json)
         AS (id bigint, partition integer, "offset" bigint, key text, ms bigint, known boolean)
     ) WITH ORDINALITY AS record (id, partition, "offset", key, ms, known, position)
WHERE (%(checked)s OR (SELECT true FROM outbox_open WHERE topic = %(topic)s ORDER BY key, arrived
                       LIMIT 1) IS NULL)
  AND (SELECT record.known
       OR (o.key = record.key AND extract(epoch FROM o.created_at) * 1000 = record.ms
                               AND o.topic = %(topic)s AND o.resend_of IS NULL)
       FROM outbox AS o
       WHERE o.id = record.id AND o.id BETWEEN %(first)s AND %(last)s)
ORDER BY position
ON CONFLICT (outbox_id) DO NOTHING
RETURNING outbox_id;

-- open_keys --
-- Conversations that wait behind an open message.
SELECT key
FROM json_array_elements_text(%(keys)s::json) AS given (key)
WHERE (SELECT true FROM outbox_open AS s WHERE s.topic = %(topic)s AND s.key = given.key LIMIT 1);

-- identities --
-- What tells the records of these outbox rows from any other's.
SELECT id, key, CASE WHEN isfinite(created_at)
    THEN (extract(epoch FROM created_at) * 1000)::bigint END, resend_of, topic
FROM outbox
WHERE id = ANY(%(ids)s::bigint[]);

-- row_writers --
-- For rows that are not there, by the partition each would be in: the newest id that was drawn, who
-- may be committing into that partition, and whether one of them waits for a standby.  Whoever
-- commits holds the partition's lock until it is visible, and is active; one that is idle in its
-- transaction has not committed, nor has a prepared one while nobody says COMMIT PREPARED. Of
-- sessions that this role may not look into nothing is known: all count.
WITH wanted AS MATERIALIZED (
    SELECT child.oid AS leaf, bounds[1]::bigint AS first, bounds[2]::bigint AS until
    FROM pg_inherits
    JOIN pg_class AS child ON child.oid = inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(child.relpartbound, child.oid),
                                    $$\('(-?\d+)'\) TO \('(-?\d+)'\)$$) AS bounds
    WHERE inhparent = 'outbox'::regclass
      AND EXISTS (
          SELECT FROM unnest(%(ids)s::bigint[]) AS given (id)
          WHERE given.id >= bounds[1]::bigint AND given.id < bounds[2]::bigint)
), sessions AS MATERIALIZED (
    SELECT pid, state, wait_event, query, query = '<insufficient privilege>' AS hidden
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' OR query = '<insufficient privilege>'
), writers AS (
    SELECT l.relation, l.virtualtransaction, s.wait_event IS NOT DISTINCT FROM 'SyncRep' AS standby
    FROM pg_locks AS l
    LEFT JOIN sessions AS s USING (pid)
    WHERE l.locktype = 'relation'
      AND l.mode = 'RowExclusiveLock'
      AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND CASE
              WHEN l.pid IS NOT NULL THEN coalesce(s.state NOT LIKE 'idle%%', true)
              ELSE EXISTS (
                  SELECT FROM sessions AS other
                  WHERE other.pid <> pg_backend_pid()
                    AND (other.hidden OR other.state = 'active'
                         AND other.query ~* 'commit\s+prepared'))
          END
)
SELECT w.first, w.until, n.newest,
       coalesce(array_agg(DISTINCT writers.virtualtransaction)
                FILTER (WHERE writers.virtualtransaction IS NOT NULL), '{}'),
       coalesce(bool_or(writers.standby), false)
FROM (SELECT last_value - (NOT is_called)::int AS newest FROM outbox_id_seq) AS n
LEFT JOIN wanted AS w ON true
LEFT JOIN writers ON writers.relation = w.leaf
GROUP BY w.first, w.until, n.newest;

-- facts --
-- What is known of messages that were not simply new: whether the root has an outbox row, and its
-- fate so far.
SELECT given.id, o.id IS NOT NULL, s.status, s.source_id, s.attempts,
       coalesce(s.next_retry_at <= now(), false), s.topic IS NOT NULL AND NOT EXISTS (
           SELECT FROM outbox_open AS e
           WHERE e.topic = s.topic AND e.key = s.key AND e.arrived < s.arrived),
       s.error_code, coalesce(extract(epoch FROM now() - s.updated_at), 0)::double precision
FROM unnest(%(ids)s::bigint[]) AS given (id)
LEFT JOIN (SELECT id FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS o ON o.id = given.id
LEFT JOIN (SELECT * FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]) OFFSET 0) AS s
  ON s.outbox_id = given.id;

-- payloads --
-- Messages by their root, with the payload that counts: that of the row given for each, of which a
-- replay makes a new one. Its time is in milliseconds since 1970, null where Python has no such
-- time: a row's may be infinity.
SELECT root.id, root.biz_type, root.key, body.payload::text,
       CASE WHEN root.created_at BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999'
            THEN (extract(epoch FROM root.created_at) * 1000)::bigint END
FROM unnest(%(ids)s::bigint[], %(bodies)s::bigint[]) AS given (id, body)
JOIN (SELECT * FROM outbox WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0) AS root ON root.id = given.id
LEFT JOIN (SELECT * FROM outbox WHERE id = ANY(%(bodies)s::bigint[]) OFFSET 0) AS body
  ON body.id = given.body;

-- reclaim --
-- Take open messages for this transaction, in the order given, if their status is still the one
-- given. Numbers are drawn once, in that order, before anything is joined: as a subquery they were
-- drawn again for each row that it was joined to, in the order of those rows, when the planner
-- believed that there are few.
WITH m AS MATERIALIZED (
    SELECT given.*, nextval('outbox_applied') AS applied,
           (SELECT o.opened FROM outbox_open AS o WHERE o.outbox_id = given.outbox_id)
    FROM json_to_recordset(%(messages)s::json)
         AS given (outbox_id bigint, status text, partition integer, "offset" bigint)
)
UPDATE outbox_state AS s
SET status = 'consumed', applied = m.applied, topic = NULL, key = NULL, next_retry_at = NULL,
    partition = coalesce(s.partition, m.partition), "offset" = coalesce(s."offset", m."offset"),
    updated_at = now()
FROM m
WHERE s.outbox_id = ANY(%(ids)s::bigint[]) AND s.outbox_id + 0 = m.outbox_id AND s.status = m.status
RETURNING s.outbox_id, extract(epoch FROM m.opened)::double precision;

-- open --
-- Messages set aside on arrival, dead or parked; what has a fate already keeps it, what is no
-- outbox row's gets none.
INSERT INTO outbox_state (outbox_id, status, partition, "offset", arrived, topic, key, error_code,
                          error)
SELECT outbox_id, status, partition, "offset", nextval('outbox_arrived'),
       CASE WHEN open THEN %(topic)s END, CASE WHEN open THEN m.key END, error_code, error
FROM ROWS FROM (
         json_to_recordset(%(messages)s::json)
         AS (outbox_id bigint, status text, open boolean, partition integer, "offset" bigint,
             key text, error_code text, error text, ms bigint, known boolean)
     ) WITH ORDINALITY AS m (outbox_id, status, open, partition, "offset", key, error_code, error,
                             ms, known, position)
JOIN (
    SELECT id, key, created_at, topic, resend_of FROM outbox
    WHERE id = ANY(%(ids)s::bigint[]) OFFSET 0
) AS o ON o.id = m.outbox_id
WHERE m.known OR (o.key = m.key AND extract(epoch FROM o.created_at) * 1000 = m.ms
                  AND o.topic = %(topic)s AND o.resend_of IS NULL)
ORDER BY position
ON CONFLICT (outbox_id) DO NOTHING
RETURNING outbox_id;

-- set_aside --
-- Messages of this transaction that are not applied after all, in record order; what arrived before
-- keeps its place.
WITH m AS MATERIALIZED (
    SELECT given.*, nextval('outbox_arrived') AS arrived
    FROM json_to_recordset(%(messages)s::json)
         AS given (outbox_id bigint, status text, open boolean, key text, partition integer,
                   "offset" bigint, attempts integer, error_code text, error text,
                   delay double precision)
)
UPDATE outbox_state AS s
SET status = m.status, applied = NULL, arrived = coalesce(s.arrived, m.arrived),
    topic = CASE WHEN m.open THEN %(topic)s END, key = CASE WHEN m.open THEN m.key END,
    partition = coalesce(s.partition, m.partition), "offset" = coalesce(s."offset", m."offset"),
    attempts = m.attempts, error_code = coalesce(m.error_code, s.error_code),
    error = coalesce(m.error, s.error), next_retry_at = now() + m.delay * interval '1 second',
    updated_at = now()
FROM m
WHERE s.outbox_id = ANY(%(ids)s::bigint[]) AND s.outbox_id + 0 = m.outbox_id
RETURNING s.outbox_id, extract(epoch FROM s.next_retry_at)::double precision;

-- opened_before --
-- Messages that this transaction took and that are open again wait since they were set aside first.
UPDATE outbox_open AS o
SET opened = to_timestamp(given.opened)
FROM json_to_recordset(%(messages)s::json) AS given (outbox_id bigint, opened double precision)
WHERE o.outbox_id = given.outbox_id;

-- traceparents --
-- The W3C contexts of the callers who have one.  On an envelope topic the ids are another system's:
-- no row is of that topic.
SELECT id, traceparent
FROM outbox
WHERE id = ANY(%(ids)s::bigint[]) AND traceparent IS NOT NULL AND topic = %(topic)s;

-- rows_inserted --
-- Rows that this transaction inserted into the table, or into its partitions, those that were
-- undone with a savepoint too; and those of earlier transactions that the server has not reported
-- yet.
SELECT coalesce(
    (SELECT sum(pg_stat_get_xact_tuples_inserted(relid))
     FROM pg_partition_tree(to_regclass(quote_ident(%(table)s)))),
    pg_stat_get_xact_tuples_inserted(to_regclass(quote_ident(%(table)s))))::bigint;

-- rejected_before --
-- Of each partition and reason the range of rejects that begins last, but not behind the given
-- offset.  Those of a topic that had the name before are of other records.
SELECT r.partition, r."offset", coalesce(r.last_offset, r."offset"), r.count, r.reason
FROM json_to_recordset(%(given)s::json) AS given (partition integer, reason text, first bigint)
CROSS JOIN LATERAL (
    SELECT *
    FROM outbox_rejects AS x
    WHERE x.topic = %(topic)s AND x.partition = given.partition AND x.reason = given.reason
      AND x."offset" <= given.first
      AND x.at >= coalesce((SELECT max(noted_at) FROM outbox_topics AS t WHERE t.topic = x.topic
                            HAVING count(*) > 1), '-infinity')
    ORDER BY x."offset" DESC
    LIMIT 1
) AS r;

-- reject --
-- What is no outbox row's, as ranges of offsets, new or grown.  A range of a topic that had the
-- name before gives way.
INSERT INTO outbox_rejects AS known (topic, partition, "offset", last_offset, count, reason)
SELECT %(topic)s, partition, first, last, records, reason
FROM json_to_recordset(%(rejects)s::json)
     AS r (partition integer, first bigint, last bigint, records bigint, reason text)
ON CONFLICT (topic, partition, "offset")
DO UPDATE SET last_offset = excluded.last_offset, count = excluded.count, at = now(),
              reason = excluded.reason
WHERE known.reason = excluded.reason
   OR known.at < (SELECT max(noted_at) FROM outbox_topics AS t WHERE t.topic = known.topic
                  HAVING count(*) > 1);

-- note_deleted --
-- Offsets that Kafka deleted unread, as a range of rejects; it begins behind what was read and
-- rejected without being committed.  Where `first` is below 0 it begins where the group was last
-- seen in the topic that is there now: Kafka forgets a group's offsets, too.
WITH began AS (
    SELECT coalesce((SELECT max(noted_at) FROM outbox_topics WHERE topic = %(topic)s
                     HAVING count(*) > 1), '-infinity') AS at
),
lost AS (
    SELECT CASE WHEN %(first)s >= 0 THEN %(first)s
                ELSE (SELECT max(committed) FROM outbox_lag AS l
                      WHERE l.topic = %(topic)s AND l.partition = %(partition)s
                        AND l.topic_id = (SELECT t.topic_id FROM outbox_topics AS t
                                          WHERE t.topic = l.topic ORDER BY noted_at DESC LIMIT 1))
           END AS first
),
unread AS (
    SELECT greatest(first, (
               SELECT max(coalesce(r.last_offset, r."offset")) + 1
               FROM outbox_rejects AS r
               WHERE r.topic = %(topic)s AND r.partition = %(partition)s
                 AND r."offset" BETWEEN lost.first AND %(end)s - 1
                 AND r.reason <> %(reason)s AND r.at >= (SELECT at FROM began))) AS first
    FROM lost
    WHERE first IS NOT NULL
)
INSERT INTO outbox_rejects AS known (topic, partition, "offset", last_offset, count, reason)
SELECT %(topic)s, %(partition)s, first, %(end)s - 1, %(end)s - first, %(reason)s
FROM unread
WHERE first < %(end)s
ON CONFLICT (topic, partition, "offset")
DO UPDATE SET last_offset = excluded.last_offset, count = excluded.count, at = now(),
              reason = excluded.reason
RETURNING "offset", count;

-- take_partitions --
-- Make these partitions one owner's; what was noted of them before, as the rows were when this
-- began.
WITH given AS (
    SELECT topic, partition
    FROM unnest(%(topics)s::text[], %(partitions)s::integer[]) AS given (topic, partition)
),
taken AS (
    INSERT INTO outbox_partition_crashes (topic, partition, owner)
    SELECT topic, partition, %(owner)s FROM given ORDER BY topic, partition
    ON CONFLICT (topic, partition) DO UPDATE
    SET owner = excluded.owner, orderly = false, updated_at = now()
)
SELECT topic, partition, crashes, through, orderly
FROM outbox_partition_crashes JOIN given USING (topic, partition);

-- put_strikes --
-- Committed before a handler gets messages of a partition that may have taken its process down, and
-- taken back afterwards.
UPDATE outbox_partition_crashes
SET crashes = %(crashes)s, through = %(through)s, first_offset = %(offset)s, updated_at = now()
WHERE topic = %(run_topic)s AND partition = %(partition)s AND owner = %(owner)s
RETURNING 1;

-- hand_on --
-- Partitions that their owners give up alive, and do not suspect.
UPDATE outbox_partition_crashes AS c
SET orderly = true, updated_at = now()
FROM unnest(%(owners)s::text[], %(topics)s::text[], %(partitions)s::integer[])
     AS given (owner, topic, partition)
WHERE c.topic = given.topic AND c.partition = given.partition AND c.owner = given.owner;

-- strike --
-- Committed before a message is tried alone: how often that was begun before and never ended.
INSERT INTO outbox_message_crashes AS c (topic, outbox_id, partition, crashes)
SELECT %(topic)s, id, %(partition)s, 1 FROM unnest(%(ids)s::bigint[]) AS given (id)
ON CONFLICT (topic, outbox_id) DO UPDATE SET crashes = c.crashes + 1, updated_at = now()
RETURNING outbox_id, crashes - 1;

-- withdraw_strikes --
-- What was tried alone and failed or waits has not taken its process down.
UPDATE outbox_message_crashes
SET crashes = crashes - 1, updated_at = now()
WHERE topic = %(topic)s AND outbox_id = ANY(%(ids)s::bigint[]) AND crashes > 0;

-- forget_strikes --
-- What was tried alone has a fate.
DELETE FROM outbox_message_crashes
WHERE topic = %(topic)s AND outbox_id = ANY(%(ids)s::bigint[]);

-- biz_types_registered --
-- Which of these biz_types somebody registered, and whether they are retired.
SELECT biz_type, retired_at IS NOT NULL FROM outbox_biz_types
WHERE biz_type = ANY(%(biz_types)s::text[]);
