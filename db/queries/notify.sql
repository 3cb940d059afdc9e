-- listen --
-- Hear of new rows on this connection.
LISTEN outbox_streams;

-- has_notify_trigger --
-- Whether inserts into the outbox tell of themselves.
SELECT EXISTS (SELECT FROM pg_trigger
               WHERE tgrelid = 'outbox'::regclass AND tgname = 'outbox_notify');

-- make_notify_trigger --
-- Once a statement, however many rows it writes.
CREATE TRIGGER outbox_notify AFTER INSERT ON outbox
FOR EACH STATEMENT EXECUTE FUNCTION outbox_notify();

-- drop_notify_trigger --
-- NOTIFY takes a lock of the whole server at commit: nobody pays for it who does not want it.
DROP TRIGGER outbox_notify ON outbox;
