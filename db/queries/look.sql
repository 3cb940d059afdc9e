-- look_moment --
-- Which moment this is, of which database, and how many seconds ago: that of a replica's last
-- replay, or now while it follows its primary and has replayed all of it, since nobody may have
-- written anything.  What a session begins with says whether the server takes writes, whatever this
-- one was set to since.
SELECT at, current_database(), pg_is_in_recovery(),
       (SELECT reset_val = 'on' FROM pg_settings WHERE name = 'default_transaction_read_only'),
       greatest(0, extract(epoch FROM now() - at))::double precision
FROM (
    SELECT CASE
               WHEN NOT pg_is_in_recovery() THEN now()
               WHEN EXISTS (SELECT FROM pg_stat_wal_receiver)
                   AND pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn() THEN now()
               ELSE coalesce(pg_last_xact_replay_timestamp(), now())
           END AS at
) AS moment;

-- look_floor --
-- Up to which id relays have published.
SELECT coalesce(max(floor), 0) FROM relay_position;

-- look_pending --
-- Committed rows above the floor whose fate has not begun, at most one more than asked for; and
-- when the first was enqueued.
SELECT count(*), min(created_at) FILTER (WHERE created_at BETWEEN '0001-01-02' AND '9999-12-30')
       AT TIME ZONE 'UTC'
FROM (
    SELECT o.created_at
    FROM outbox AS o
    WHERE o.id > %(floor)s AND o.resend_of IS NULL
      AND NOT EXISTS (
          SELECT FROM outbox_state AS s WHERE s.outbox_id = o.id AND s.outbox_id > %(floor)s
      )
    ORDER BY o.id
    LIMIT %(most)s + 1
) AS waiting;

-- look_published --
-- Rows among these ids, all of them at or below the floor, whose fate has not begun, and when the
-- first was enqueued.
SELECT count(*), min(o.created_at) FILTER (WHERE o.created_at BETWEEN '0001-01-02' AND '9999-12-30')
       AT TIME ZONE 'UTC'
FROM outbox AS o
LEFT JOIN outbox_state AS s
  ON s.outbox_id = o.id AND s.outbox_id > %(after)s AND s.outbox_id <= %(floor)s
WHERE o.id > %(after)s AND o.id <= %(floor)s AND o.resend_of IS NULL AND s.outbox_id IS NULL;

-- look_open --
-- What waits for another try, by topic; how many have few attempts left, and how many wait for a
-- worker that knows their biz_type; and whether processes tell of any topic, and of this one, of
-- late: they do of all that they read.
WITH told AS (
    SELECT DISTINCT topic FROM outbox_lag WHERE at > %(at)s::timestamptz - interval '1 minute'
)
SELECT topic, count(*) FILTER (WHERE status = 'retrying'),
       count(*) FILTER (WHERE status = 'parked'), count(*) FILTER (WHERE status = 'replaying'),
       count(*) FILTER (WHERE status = 'retrying' AND attempts >= %(attempts)s),
       count(*) FILTER (WHERE status = 'retrying' AND error_code = 'biz_type'),
       EXISTS (SELECT FROM told) AND topic NOT IN (SELECT topic FROM told)
FROM (
    SELECT topic, status, attempts, error_code FROM outbox_open WHERE status <> 'dead'
    UNION ALL
    SELECT topic, status, attempts, error_code FROM outbox_foreign WHERE open AND status <> 'dead'
) AS open_messages
GROUP BY topic
ORDER BY topic;

-- dead_signature --
-- How many are dead, how many of them hold their conversation, and who died last: the same three
-- numbers only as long as the same messages are dead.  Each has an index that holds it.
SELECT (SELECT count(*) FROM outbox_dead_letters),
       (SELECT count(*) FROM outbox_dead_letters WHERE held),
       (SELECT coalesce(max(died), 0) FROM outbox_dead_letters);

-- look_dead --
-- Since when the conversation is held that is held longest, how many died in the last five minutes,
-- and how many do in five minutes of the day before.
SELECT (SELECT min(died_at) FROM outbox_dead_letters WHERE held),
       (SELECT coalesce(sum(dead), 0)::bigint FROM outbox_stats
        WHERE width = 10 AND bucket > %(at)s::timestamptz - interval '5 minutes'
          AND projection = %(projection)s),
       (SELECT coalesce(sum(dead), 0)::double precision / 287 FROM outbox_stats
        WHERE width = 60 AND process = '' AND bucket > %(at)s::timestamptz - interval '1 day'
          AND bucket <= %(at)s::timestamptz - interval '5 minutes'
          AND projection = %(projection)s);

-- look_causes --
-- Dead messages by cause, the one whose newest died last first: an index holds all of it.  What the
-- newest one says is looked up by its id, in its own partition.
SELECT c.fingerprint, d.biz_type, d.error_code, c.messages, c.conversations, c.held, c.first,
       c.last, d.source, d.outbox_id
FROM (
    -- Conversation by conversation, in the order of the index: counting distinct ones would sort
    -- them all.
    SELECT fingerprint, sum(messages)::bigint AS messages, count(*) AS conversations,
           sum(held)::bigint AS held, min(first) AS first, max(last) AS last, max(newest) AS newest
    FROM (
        SELECT fingerprint, topic, key, count(*) AS messages,
               count(*) FILTER (WHERE held) AS held, min(died_at) AS first, max(died_at) AS last,
               max(died) AS newest
        FROM outbox_dead_letters
        WHERE (%(fingerprint)s::text IS NULL OR fingerprint = %(fingerprint)s)
        GROUP BY fingerprint, topic, key
    ) AS conversations
    GROUP BY fingerprint
    ORDER BY max(newest) DESC
    LIMIT %(limit)s
) AS c
JOIN outbox_dead_letters AS d ON d.died = c.newest
ORDER BY c.newest DESC;

-- look_sparklines --
-- How many of these causes died in each of the last 24 hours, 0 being this one.
SELECT fingerprint, floor(extract(epoch FROM %(now)s::timestamptz - died_at) / 3600)::int AS ago,
       count(*)
FROM outbox_dead_letters
WHERE fingerprint = ANY(%(fingerprints)s::text[])
  AND died_at > %(now)s::timestamptz - interval '24 hours'
GROUP BY fingerprint, ago;

-- look_heads --
-- Conversations with open messages, the longest waiting first: what each waits for, until when, and
-- how many behind it.  Of so many messages that have waited longest only (all of them: NULL), since
-- grouping them all takes longer than anything else that is looked at.  A conversation's first
-- message, which holds it, and how many it has are looked up for those that are shown.
SELECT c.source, c.topic, c.key, h.outbox_id, h.status, h.error_code, c.since, h.due,
       b.messages - 1, h.attempts, h.partition
FROM (
    SELECT source, topic, key, min(since) AS since
    FROM (
        (SELECT '' AS source, topic, key, opened AS since
         FROM outbox_open
         WHERE (%(topic)s::text IS NULL OR topic = %(topic)s)
           AND (%(key)s::text IS NULL OR key = %(key)s)
           AND (NOT %(held)s
                OR (topic, key) IN (SELECT topic, key FROM outbox_open WHERE status = 'dead'))
         ORDER BY opened, topic, key
         LIMIT %(among)s)
        UNION ALL
        (SELECT source, topic, key, opened
         FROM outbox_foreign
         WHERE open AND (%(topic)s::text IS NULL OR topic = %(topic)s)
           AND (%(key)s::text IS NULL OR key = %(key)s)
           AND (NOT %(held)s
                OR (source, topic, key) IN (SELECT source, topic, key FROM outbox_foreign
                                            WHERE open AND status = 'dead'))
         ORDER BY opened, topic, key
         LIMIT %(among)s)
        ORDER BY since, topic, key
        LIMIT %(among)s
    ) AS longest
    GROUP BY source, topic, key
    ORDER BY since, topic, key
    LIMIT %(limit)s
) AS c
CROSS JOIN LATERAL (
    (SELECT outbox_id, status, error_code, due, attempts, partition
     FROM outbox_open AS o
     WHERE c.source = '' AND o.topic = c.topic AND o.key = c.key
     ORDER BY o.arrived
     LIMIT 1)
    UNION ALL
    (SELECT outbox_id, status, error_code, next_retry_at, attempts, partition
     FROM outbox_foreign AS f
     WHERE c.source <> '' AND f.open AND f.source = c.source AND f.topic = c.topic
       AND f.key = c.key
     ORDER BY f.arrived
     LIMIT 1)
) AS h
CROSS JOIN LATERAL (
    SELECT (SELECT count(*) FROM outbox_open AS o
            WHERE c.source = '' AND o.topic = c.topic AND o.key = c.key)
           + (SELECT count(*) FROM outbox_foreign AS f
              WHERE c.source <> '' AND f.open AND f.source = c.source AND f.topic = c.topic
                AND f.key = c.key) AS messages
) AS b
ORDER BY c.since, c.topic, c.key;

-- look_processes --
-- Lives of processes with a sign of life within so many seconds, the newest first.
SELECT id::text, kind, name, host, pid, version, address, partitions, memory, runs, pool_used,
       pool_size, waits_for, waits_code, waits_since, figures, started, heartbeat, ended,
       extract(epoch FROM %(at)s::timestamptz - heartbeat)::double precision AS silent
FROM outbox_processes
WHERE heartbeat > %(at)s::timestamptz - %(seconds)s * interval '1 second'
ORDER BY started DESC, id
LIMIT %(limit)s;

-- look_crashed --
-- Processes that were started three times and more in ten minutes without having ended in order:
-- where, and how often.
SELECT kind || ' on ' || host, count(*)
FROM outbox_processes
WHERE heartbeat BETWEEN %(at)s::timestamptz - interval '10 minutes'
                    AND %(at)s::timestamptz - interval '10 seconds'
  AND ended IS NULL
GROUP BY kind, host
HAVING count(*) >= 3
ORDER BY 1;

-- look_lag --
-- How far this consumer group is in each partition; NULL: each group there is.  A topic of which
-- nobody writes while others are written is read no more.
SELECT "group", topic, partition, committed, end_offset, log_start, moved, at, worked
FROM (
    SELECT *, max(at) OVER (PARTITION BY "group", topic) AS topic_at,
           max(at) OVER (PARTITION BY "group") AS group_at
    FROM outbox_lag
    WHERE at > %(at)s::timestamptz - interval '1 day'
      AND (%(group)s::text IS NULL OR "group" = %(group)s)
) AS known
WHERE topic_at > group_at - interval '1 minute'
ORDER BY "group", topic, partition;

-- look_rates --
-- Counts of each biz_type over a span of so many seconds that ended a short time ago: processes
-- send theirs every few seconds.
SELECT biz_type, sum(enqueued)::bigint, sum(relayed)::bigint, sum(consumed)::bigint,
       sum(retried)::bigint, sum(parked)::bigint, sum(dead)::bigint, sum(skipped)::bigint
FROM outbox_stats
WHERE width = 10 AND projection = %(projection)s
  AND bucket >= date_bin('10 s', %(at)s::timestamptz, 'epoch') - %(seconds)s * interval '1 second'
  AND bucket < date_bin('10 s', %(at)s::timestamptz, 'epoch')
GROUP BY biz_type
ORDER BY biz_type;

-- look_latency --
-- Histograms of the same span, of one version of the bounds.
SELECT latency
FROM outbox_stats
WHERE width = 10 AND projection = %(projection)s AND bounds = %(bounds)s AND latency <> '{}'
  AND bucket >= date_bin('10 s', %(at)s::timestamptz, 'epoch') - %(seconds)s * interval '1 second'
  AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s);

-- look_proof --
-- The newest audit, what it counted of the kinds that the badge names, and when the newest message
-- it saw was enqueued.
SELECT a.id, a.at, a.complete, a.messages, a.wrong,
       coalesce((a.report #>> '{wrong,missing,count}')::bigint, 0),
       coalesce((a.report #>> '{wrong,doubled_effect,count}')::bigint, 0),
       coalesce((a.report ->> 'until')::bigint, 0), coalesce((a.report ->> 'left')::bigint, 0)
FROM outbox_audits AS a
ORDER BY a.id DESC
LIMIT 1;

-- look_enqueued_last --
-- When the newest message among these ids was enqueued.
SELECT created_at AT TIME ZONE 'UTC'
FROM outbox
WHERE id > %(after)s AND id <= %(until)s AND resend_of IS NULL
  AND created_at BETWEEN '0001-01-02' AND '9999-12-30'
ORDER BY id DESC
LIMIT 1;

-- look_enqueued_first --
-- When the oldest message among these ids was enqueued.
SELECT created_at AT TIME ZONE 'UTC'
FROM outbox
WHERE id > %(after)s AND id <= %(until)s AND resend_of IS NULL
  AND created_at BETWEEN '0001-01-02' AND '9999-12-30'
ORDER BY id
LIMIT 1;

-- look_newer --
-- How many messages there are among these ids, at most so many.
SELECT count(*)
FROM (
    SELECT FROM outbox
    WHERE id > %(after)s AND id <= %(until)s AND resend_of IS NULL
    LIMIT %(most)s
) AS newer;

-- look_errors --
-- What these messages of one's own failed with last, how often they were tried, and how often
-- replayed.
SELECT outbox_id, error, attempts, replays
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]);

-- look_foreign_errors --
-- The same of other systems' messages.
SELECT f.source, f.outbox_id, f.error, f.attempts, f.replays
FROM outbox_foreign AS f
JOIN unnest(%(sources)s::text[], %(ids)s::bigint[]) AS given (source, outbox_id)
  ON given.source = f.source AND given.outbox_id = f.outbox_id;

-- look_rejects --
-- Records of the last ten minutes that belong to no message, as ranges count them.
SELECT coalesce(sum(count), 0)::bigint
FROM outbox_rejects
WHERE at > %(at)s::timestamptz - interval '10 minutes' AND reason <> %(deleted)s;

-- look_deleted --
-- What Kafka deleted of other systems' topics in the last day before workers had read it.
SELECT topic, partition, "offset", last_offset, count, at
FROM outbox_rejects
WHERE at > %(at)s::timestamptz - interval '1 day' AND reason = %(deleted)s
ORDER BY at DESC
LIMIT 20;

-- look_trends --
-- Each gauge now and about ten minutes ago, of those that were written of late.
SELECT name || CASE WHEN label = '' THEN '' ELSE ':' || label END,
       (array_agg(value ORDER BY bucket))[1], (array_agg(value ORDER BY bucket DESC))[1],
       extract(epoch FROM max(bucket) - min(bucket))::double precision
FROM outbox_gauges
WHERE width = 10 AND bucket > %(at)s::timestamptz - interval '10 minutes'
GROUP BY name, label
HAVING max(bucket) > %(at)s::timestamptz - interval '1 minute';

-- look_primary --
-- What leaders wrote last of what only the primary or Kafka can tell.
SELECT relay, at, seen FROM outbox_primary WHERE relay <> '' ORDER BY relay;
