-- All of them at once, and first: what is rewritten below stands still for that long only, and is not rewritten in vain
-- while somebody holds another one.
LOCK TABLE outbox_open, outbox_foreign, outbox_retired IN ACCESS EXCLUSIVE MODE;

-- A try that fails writes its state anew: `since` and `updated_at` are of the last one.  What was open before this waits
-- since then, as far as anybody knows.
ALTER TABLE outbox_open ADD opened timestamptz;
UPDATE outbox_open SET opened = since;
ALTER TABLE outbox_open ALTER opened SET DEFAULT now(), ALTER opened SET NOT NULL;
CREATE INDEX outbox_open_waiting ON outbox_open (opened);

ALTER TABLE outbox_foreign ADD opened timestamptz;
UPDATE outbox_foreign SET opened = updated_at WHERE open;

-- The part of the archive that was written last of a range, '' of one that was emptied without an archive; NULL: nobody
-- knows, an earlier release emptied it.
ALTER TABLE outbox_retired ADD archived text;

DO $$
DECLARE
    schema text := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'outbox'::regclass);
BEGIN
    EXECUTE format($make$
        CREATE OR REPLACE FUNCTION %1$s.outbox_open_put() RETURNS trigger
        LANGUAGE plpgsql SET search_path = %1$s, pg_temp SET plan_cache_mode = force_generic_plan AS $body$
        BEGIN
            INSERT INTO outbox_open
                   (outbox_id, topic, key, arrived, source_id, due, since, partition, attempts, status, error_code, opened)
            VALUES (NEW.outbox_id, NEW.topic, NEW.key, NEW.arrived, NEW.source_id, NEW.next_retry_at, NEW.updated_at,
                    NEW.partition, NEW.attempts, NEW.status, NEW.error_code, NEW.updated_at)
            ON CONFLICT (outbox_id) DO UPDATE
            SET topic = excluded.topic, key = excluded.key, arrived = excluded.arrived, source_id = excluded.source_id,
                due = excluded.due, since = excluded.since, partition = excluded.partition, attempts = excluded.attempts,
                status = excluded.status, error_code = excluded.error_code;
            RETURN NULL;
        END
        $body$;

        CREATE FUNCTION %1$s.outbox_foreign_opened() RETURNS trigger
        LANGUAGE plpgsql SET search_path = %1$s, pg_temp AS $body$
        BEGIN
            NEW.opened := CASE WHEN NEW.open THEN NEW.updated_at END;
            RETURN NEW;
        END
        $body$;
    $make$, schema);
END
$$;

CREATE TRIGGER outbox_foreign_opened BEFORE INSERT OR UPDATE ON outbox_foreign
FOR EACH ROW WHEN (NEW.open <> (NEW.opened IS NOT NULL)) EXECUTE FUNCTION outbox_foreign_opened();
