-- Where each shard of a relay is; relay_position has the least of them.
CREATE TABLE relay_shards (
    name      text,
    shard     integer,
    shards    integer NOT NULL,
    floor     bigint NOT NULL,
    leader    text,
    pid       integer,
    heartbeat timestamptz,
    PRIMARY KEY (name, shard)
);

-- Which of so many shards a conversation belongs to.
CREATE FUNCTION outbox_shard(key text, shards integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ((hashtextextended(key, 0) & 9223372036854775807) % shards)::integer
$$;

-- `streams migrate` makes the trigger that calls it where relay.notify is set: once a statement, delivered at the commit.
CREATE FUNCTION outbox_notify() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY outbox_streams;
    RETURN NULL;
END
$$;
