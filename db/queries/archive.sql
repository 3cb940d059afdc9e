-- database_identity --
-- Which database this is.
SELECT outbox_identity();

-- erasures --
-- How many acts of erasure are noted, and the newest: what was archived before one holds the text.
SELECT count(*), coalesce(max(id), 0) FROM outbox_actions WHERE act = 'erase';

-- range_ages --
-- When the first and the last row of a range of ids were written; what is infinite or past the
-- year 9999 says nothing about that.
SELECT min(created_at), max(created_at)
FROM outbox
WHERE id BETWEEN %(first)s AND %(last)s AND created_at BETWEEN '0001-01-02' AND '9999-12-30';

-- columns --
-- Columns of a table of ours, and their types, in their order.
SELECT attname::text, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid = %(table)s::text::regclass AND attnum > 0 AND NOT attisdropped
ORDER BY attnum;
