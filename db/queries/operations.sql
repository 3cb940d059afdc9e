-- operation_plan --
-- Dead messages that fit and died no later than a place in the order of dying, none of them in a
-- transaction that was open when the place was read, conversation after conversation, each in its
-- original order; and whether each still holds its conversation: otherwise it comes late.
SELECT name, waits
FROM (
    SELECT d.*, l.held AS waits, min(d.outbox_id) OVER conversation AS first,
           bool_and(arrived IS NOT NULL) OVER conversation AS all_arrived,
           bool_and("offset" IS NOT NULL) OVER conversation AS all_placed
    FROM outbox_dead_letters AS l
    JOIN outbox_dead AS d ON d.source = l.source AND d.outbox_id = l.outbox_id
    WHERE l.died <= %(through)s AND (l.died_in = ANY(%(unseen)s::bigint[])) IS NOT TRUE
      AND (%(names)s::text[] IS NULL OR d.name = ANY(%(names)s::text[]))
      AND (%(source)s::text IS NULL OR l.source = %(source)s)
      AND (%(biz_type)s::text IS NULL OR l.biz_type = %(biz_type)s)
      AND (%(key)s::text IS NULL OR l.key = %(key)s)
      AND (%(error)s::text IS NULL OR %(error)s IN (l.error_code, l.fingerprint))
      AND (%(since)s::timestamptz IS NULL OR l.died_at >= %(since)s)
    WINDOW conversation AS (PARTITION BY d.source, d.topic, d.key)
) AS dead
ORDER BY source, first, CASE WHEN all_arrived THEN arrived END,
         CASE WHEN all_placed THEN partition END,
         CASE WHEN all_placed THEN "offset" END, outbox_id
LIMIT %(limit)s;

-- operation_bound --
-- The place of whoever died last, and the open transactions: a place is given when a message dies,
-- and seen when that commits, so these may yet tell of deaths before it.
SELECT coalesce((SELECT max(died) FROM outbox_dead_letters), 0),
       ARRAY(SELECT open::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS open);

-- operation_forget --
-- Previews that nobody submitted within an hour.
DELETE FROM outbox_operations WHERE state = 'preview' AND created_at < now() - interval '1 hour';

-- operation_preview --
-- What an act would work, bound by the hash of its messages.
INSERT INTO outbox_operations (act, who, why, filter, force, rate, at_once, through, unseen, hash,
                               planned, late)
VALUES (%(act)s, %(who)s, %(why)s, %(filter)s::jsonb, %(force)s, %(rate)s, %(at_once)s, %(through)s,
        %(unseen)s, %(hash)s, %(planned)s, %(late)s)
RETURNING id;

-- operation --
-- One operation as it stands.
SELECT id, act, who, why, filter, force, rate, at_once, through, hash, planned, late, done, failed,
       circling, gone, state, reason, step, step_begin, step_end, created_at, submitted_at,
       ended_at, state = 'preview' AND created_at < now() - interval '1 hour' AS expired
FROM outbox_operations
WHERE id = %(id)s;

-- operation_lock --
-- Alone with it until the end of the transaction: the transactions that its preview did not see.
SELECT unseen FROM outbox_operations WHERE id = %(id)s FOR UPDATE;

-- operations_page --
-- Operations, the newest first, from before one on; previews only when asked for.
SELECT id, act, who, why, filter, force, rate, at_once, through, hash, planned, late, done, failed,
       circling, gone, state, reason, step, step_begin, step_end, created_at, submitted_at,
       ended_at, false AS expired
FROM outbox_operations
WHERE id < coalesce(%(before)s::bigint, 9223372036854775807) AND state <> 'preview'
ORDER BY id DESC
LIMIT %(limit)s;

-- operation_items --
-- Its messages, from a position on.
SELECT position, source, outbox_id, outcome, at
FROM outbox_operation_items
WHERE operation = %(id)s AND position > %(after)s
ORDER BY position
LIMIT %(limit)s;

-- operation_submit --
-- From now on it is worked.
UPDATE outbox_operations
SET state = 'running', who = %(who)s, why = coalesce(%(why)s, why), submitted_at = now()
WHERE id = %(id)s;

-- operation_add_items --
-- Its messages, in order.
INSERT INTO outbox_operation_items (operation, position, source, outbox_id)
SELECT %(id)s, position, source, outbox_id
FROM unnest(%(sources)s::text[], %(ids)s::bigint[])
     WITH ORDINALITY AS given (source, outbox_id, position);

-- operations_running --
-- Operations that somebody has to work.
SELECT id FROM outbox_operations WHERE state = 'running' ORDER BY id;

-- operation_next --
-- The next messages of it that were not sent, after a position.
SELECT position, source, outbox_id
FROM outbox_operation_items
WHERE operation = %(id)s AND position > %(after)s AND outcome = 'waiting'
ORDER BY position
LIMIT %(limit)s;

-- operation_unsent --
-- Messages of a step that were not sent: whoever began it has died.
SELECT position, source, outbox_id
FROM outbox_operation_items
WHERE operation = %(id)s AND position > %(begin)s AND position <= %(end)s AND outcome = 'waiting'
ORDER BY position;

-- operation_still --
-- Those of these messages that died no later than the plan's bound: one that died again is another
-- death.
SELECT source, outbox_id
FROM outbox_dead_letters
WHERE (source, outbox_id) IN (SELECT * FROM unnest(%(sources)s::text[], %(ids)s::bigint[]))
  AND died <= %(through)s;

-- operation_outcomes --
-- What became of these messages.
UPDATE outbox_operation_items AS i
SET outcome = given.outcome, at = now()
FROM json_to_recordset(%(outcomes)s::json) AS given (position bigint, outcome text)
WHERE i.operation = %(id)s AND i.position = given.position;

-- operation_fates --
-- How messages stand that were sent in a step: those that are consumed, those that failed again,
-- and those that have stood behind an earlier one of their conversation for a minute: nobody can
-- say when their turn comes.  `ids` are those of the step that are one's own: only their partitions
-- are opened.
SELECT i.position,
       CASE
           WHEN coalesce(s.status, f.status) = 'consumed' THEN 'done'
           WHEN coalesce(s.status, f.status) IN ('dead', 'discarded') THEN 'failed'
           WHEN coalesce(s.status, f.status) = 'retrying'
           AND coalesce(s.attempts, f.attempts) > 0 THEN 'failed'
           WHEN coalesce(s.status, f.status) = 'parked' AND i.at < now() - interval '1 minute'
           THEN 'queued'
       END
FROM outbox_operation_items AS i
LEFT JOIN outbox_state AS s
  ON i.source = '' AND s.outbox_id = i.outbox_id AND s.outbox_id = ANY(%(ids)s::bigint[])
LEFT JOIN outbox_foreign AS f ON f.source = i.source AND f.outbox_id = i.outbox_id
WHERE i.operation = %(id)s AND i.position > %(begin)s AND i.position <= %(end)s
  AND i.outcome = 'sent';

-- operation_sent --
-- One's own messages that were sent in a step, and are not known to have their fate.
SELECT outbox_id
FROM outbox_operation_items
WHERE operation = %(id)s AND position > %(begin)s AND position <= %(end)s AND outcome = 'sent'
  AND source = '';

-- operation_step --
-- A step was begun, the first of its size or once more.
UPDATE outbox_operations
SET step = %(step)s, step_begin = %(begin)s, step_end = %(end)s, stepped_at = now()
WHERE id = %(id)s;

-- operation_count --
-- What has become of all that was sent so far.
UPDATE outbox_operations AS o
SET done = c.done, failed = c.failed, circling = c.circling, gone = c.gone
FROM (
    SELECT count(*) FILTER (WHERE outcome IN ('done', 'sent', 'failed', 'queued')) AS done,
           count(*) FILTER (WHERE outcome = 'failed') AS failed,
           count(*) FILTER (WHERE outcome = 'circling') AS circling,
           count(*) FILTER (WHERE outcome = 'gone') AS gone
    FROM outbox_operation_items
    WHERE operation = %(id)s AND outcome <> 'waiting'
) AS c
WHERE o.id = %(id)s;

-- operation_end --
-- It is worked no longer.
UPDATE outbox_operations
SET state = %(state)s, reason = %(reason)s, ended_at = CASE WHEN %(state)s = 'done' THEN now() END
WHERE id = %(id)s AND state = 'running';

-- operation_resume --
-- It goes on, carefully again, with the first message that was not sent: the step that was
-- interrupted may have left some.
UPDATE outbox_operations AS o
SET state = 'running', reason = NULL, step = 0, step_begin = next.after, step_end = next.after
FROM (
    SELECT coalesce(
        (SELECT min(position) - 1 FROM outbox_operation_items
         WHERE operation = %(id)s AND outcome = 'waiting'),
        (SELECT step_end FROM outbox_operations WHERE id = %(id)s)
    ) AS after
) AS next
WHERE o.id = %(id)s AND o.state = 'stopped';

-- operation_rested --
-- For how many seconds nothing of the step under way was worked, null where nothing was.
SELECT extract(epoch FROM clock_timestamp() - max(at))::double precision
FROM outbox_operation_items
WHERE operation = %(id)s AND position > %(begin)s AND position <= %(end)s;

-- operation_goes_on --
-- Whether it is still to be worked, which nobody changes before the end of the transaction.
SELECT state = 'running' FROM outbox_operations WHERE id = %(id)s FOR UPDATE;

-- operation_step_state --
-- The step under way: its outcomes so far, and for how many seconds it has gone on.
SELECT count(*) FILTER (WHERE outcome = 'sent'), count(*) FILTER (WHERE outcome = 'failed'),
       count(*) FILTER (WHERE outcome IN ('done', 'failed', 'sent', 'queued')),
       (SELECT extract(epoch FROM now() - stepped_at)::double precision FROM outbox_operations
        WHERE id = %(id)s)
FROM outbox_operation_items
WHERE operation = %(id)s AND position > %(begin)s AND position <= %(end)s;

-- operation_idle --
-- Whoever works it and says nothing for a minute, between two statements, gives it back with its
-- session: it may have been paused.  What held for the session before.
SELECT current_setting('idle_session_timeout'), set_config('idle_session_timeout', '60s', false);

-- operation_idle_as_before --
-- After that.
SELECT set_config('idle_session_timeout', %(before)s, false);
