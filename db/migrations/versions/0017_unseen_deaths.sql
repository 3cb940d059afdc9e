-- Places in the order of dying are given before they are seen: of two transactions that let messages
-- die, the later place may be seen first.  What died before this has no transaction here.
-- Without a value first: the table would be written anew, and nobody could let a message die meanwhile.
ALTER TABLE outbox_dead_letters ADD died_in bigint;
ALTER TABLE outbox_dead_letters ALTER died_in SET DEFAULT pg_current_xact_id()::text::bigint;

-- Transactions that were open when a preview was made: what died in them is not part of it.
ALTER TABLE outbox_operations ADD unseen bigint[] NOT NULL DEFAULT '{}';
