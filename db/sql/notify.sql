-- listen --
-- Hear of new rows on this connection.
LISTEN outbox_streams;

-- has_notify_trigger --
-- Whether inserts into the outbox tell of themselves.
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'outbox'::regclass AND tgname = 'outbox_notify');
