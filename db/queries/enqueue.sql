-- enqueue_one --
-- The outbox row of one event, in the caller's transaction.
INSERT INTO outbox (biz_type, topic, key, payload, traceparent)
VALUES (CAST(%(biz_type)s AS text), CAST(%(topic)s AS text), CAST(%(key)s AS text),
        CAST(%(payload)s AS json), CAST(%(traceparent)s AS text))
RETURNING id;

-- enqueue_many --
-- Many events as one statement; ids ascend in the order given.
INSERT INTO outbox (biz_type, topic, key, payload, traceparent)
SELECT biz_type, topic, key, payload::json, CAST(%(traceparent)s AS text)
FROM unnest(CAST(%(biz_types)s AS text[]), CAST(%(topics)s AS text[]), CAST(%(keys)s AS text[]),
            CAST(%(payloads)s AS text[]))
     WITH ORDINALITY AS event (biz_type, topic, key, payload, position)
ORDER BY position
RETURNING id;

-- enqueue_in_order --
-- Transactions that write one conversation at once take turns, so that the order of their rows is
-- the order of commits.  How many keys this transaction has asked for so far, some of them twice
-- perhaps.
WITH asked AS MATERIALIZED (
    SELECT CAST(set_config('outbox_streams.ordered_keys',
                           CAST(coalesce(CAST(nullif(current_setting('outbox_streams.ordered_keys',
                                                                     true), '') AS integer), 0)
                                + cardinality(CAST(%(keys)s AS text[])) AS text),
                           true) AS integer) AS total
)
SELECT total, pg_advisory_xact_lock(hashtextextended(key, 7201003))
FROM asked, unnest(CAST(%(keys)s AS text[])) AS given (key)
ORDER BY key;

-- ordered_locks --
-- How many keys' locks, and other advisory ones, this transaction holds.
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();

-- draw_ids --
-- Ids for messages written directly while the outbox is disabled; noted, so that the audit knows
-- why they have no row.
INSERT INTO outbox_direct (outbox_id)
SELECT nextval('outbox_id_seq') FROM generate_series(1, CAST(%(count)s AS integer))
RETURNING outbox_id;
