-- newest_messages --
-- Messages among these ids, the newest first, and whether the relay has published them.
SELECT o.id, o.biz_type, o.topic, o.key,
       CASE WHEN o.created_at BETWEEN '0001-01-02' AND '9999-12-30'
            THEN o.created_at AT TIME ZONE 'UTC' END,
       o.id <= (SELECT coalesce(max(floor), 0) FROM relay_position)
FROM outbox AS o
WHERE o.id > %(after)s AND o.id <= %(until)s AND o.resend_of IS NULL
ORDER BY o.id DESC
LIMIT %(limit)s;

-- states_of --
-- How far these messages are whose fate has begun.  The bounds are what keeps it to the partitions
-- of these ids: in a join every partition there is would be read.
SELECT outbox_id, status, attempts, error_code, updated_at
FROM outbox_state
WHERE outbox_id = ANY(%(ids)s::bigint[]) AND outbox_id BETWEEN %(first)s AND %(last)s;

-- badges --
-- How many messages are dead, and how many of them hold their conversation: each at most one more
-- than is shown.
SELECT (SELECT count(*) FROM (SELECT FROM outbox_dead_letters LIMIT 1000) AS dead),
       (SELECT count(*) FROM (SELECT FROM outbox_dead_letters WHERE held LIMIT 1000) AS holding);
