-- erase_window --
-- Rows of a conversation, or of a biz_type with such a value in a field, among these ids.
-- Those that still hold their text.  No record is from before 1970, and none from after now.
SELECT id, coalesce(resend_of, id), topic,
       least(greatest(created_at, '1970-01-01'), now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
FROM outbox
WHERE id > %(after)s AND id <= %(until)s
  AND (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(biz_type)s::text IS NULL
       OR biz_type = %(biz_type)s
          AND CASE WHEN payload::text !~ '\\u(0000|[dD][89a-fA-F])'
                   THEN payload ->> %(field)s = %(value)s END)
  AND payload::text NOT LIKE '{"$erased"%%'
ORDER BY id;

-- erase_escaped --
-- Rows of a biz_type among these ids that may hold what no text of PostgreSQL can (NUL, half a
-- character): it refuses to look into them. With their text, for somebody else to look into.
SELECT id, coalesce(resend_of, id), topic,
       least(greatest(created_at, '1970-01-01'), now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC',
       payload::text
FROM outbox
WHERE id > %(after)s AND id <= %(until)s AND biz_type = %(biz_type)s
  AND payload::text ~ '\\u(0000|[dD][89a-fA-F])'
  AND payload::text NOT LIKE '{"$erased"%%'
ORDER BY id;

-- erase_of_roots --
-- All rows of these messages, those that sent them again with another text among them, that still
-- hold their text; none is before the first of them.
SELECT id, coalesce(resend_of, id), topic,
       least(greatest(created_at, '1970-01-01'), now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
FROM outbox
WHERE id >= %(first)s AND (id = ANY(%(ids)s::bigint[]) OR resend_of = ANY(%(ids)s::bigint[]))
  AND payload::text NOT LIKE '{"$erased"%%'
ORDER BY id;

-- settled_and_gone --
-- Those of these messages that have neither row nor state any more, in a range that was emptied:
-- it was, so they were settled.
SELECT given.id
FROM unnest(%(ids)s::bigint[]) AS given (id)
WHERE EXISTS (SELECT FROM outbox_retired AS r WHERE given.id BETWEEN r.first_id AND r.last_id)
  AND given.id NOT IN (SELECT id FROM outbox WHERE id = ANY(%(ids)s::bigint[]))
  AND given.id NOT IN (SELECT outbox_id FROM outbox_state WHERE outbox_id = ANY(%(ids)s::bigint[]));

-- erase_rows --
-- Their text is gone; who they were stays, and what a replay refuses says since when.
UPDATE outbox
SET payload = json_build_object('$erased', now())
WHERE id = ANY(%(ids)s::bigint[]);

-- erased_among --
-- Those of these rows whose text was erased.
SELECT id FROM outbox WHERE id = ANY(%(ids)s::bigint[]) AND payload::text LIKE '{"$erased"%%';

-- foreign_texts --
-- Messages of other systems that have their text yet, behind the given one; of one biz_type, or
-- of all.
SELECT source, outbox_id, status, key, payload, replaced,
       (SELECT t.key_field FROM outbox_biz_types AS t WHERE t.biz_type = f.biz_type)
FROM outbox_foreign AS f
WHERE (source, outbox_id) > (%(source)s, %(after)s)
  AND (payload IS NOT NULL OR replaced IS NOT NULL)
  AND (%(biz_type)s::text IS NULL OR biz_type = %(biz_type)s)
ORDER BY source, outbox_id
LIMIT %(most)s;

-- erase_foreign --
-- What is kept of these messages of another system, as far as they are settled.
UPDATE outbox_foreign
SET payload = NULL, replaced = NULL
WHERE source = %(source)s AND outbox_id = ANY(%(ids)s::bigint[])
  AND status IN ('consumed', 'discarded');

-- restored_tables --
-- Tables beside the outbox that `streams archive restore` made and nobody has dropped.
SELECT relname::text
FROM pg_class
WHERE relkind = 'r' AND relname ~ '^outbox(_state)?_restored_[0-9]+$'
  AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'outbox'::regclass)
ORDER BY relname;
