-- register_biz_type --
-- outbox_enqueue() looks topic and limit up here.
INSERT INTO outbox_biz_types (biz_type, topic, max_bytes)
VALUES (%(biz_type)s, %(topic)s, %(max_bytes)s)
ON CONFLICT (biz_type) DO UPDATE SET topic = excluded.topic, max_bytes = excluded.max_bytes
WHERE (outbox_biz_types.topic, outbox_biz_types.max_bytes) IS DISTINCT FROM (excluded.topic, excluded.max_bytes);

-- partition_lock --
-- Two relays, or a relay and a migration, never make the same partition.
SELECT pg_advisory_xact_lock(%(key)s);

-- partition_bounds --
-- Which ids have a home already.
SELECT parent.relname, pg_get_expr(child.relpartbound, child.oid)
FROM pg_inherits
JOIN pg_class AS parent ON parent.oid = inhparent
JOIN pg_class AS child ON child.oid = inhrelid
WHERE inhparent IN ('outbox'::regclass, 'outbox_state'::regclass);

-- last_id --
-- The newest id that was drawn, committed or not.
SELECT last_value - (NOT is_called)::int FROM outbox_id_seq;
