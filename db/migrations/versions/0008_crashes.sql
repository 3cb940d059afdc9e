-- Who owns a partition and what its owners died of.  Workers of before go on with outbox_run_crashes.
CREATE TABLE outbox_partition_crashes (
    topic        text,
    partition    integer,
    owner        text NOT NULL,
    orderly      boolean NOT NULL DEFAULT false,
    crashes      integer NOT NULL DEFAULT 0,
    first_offset bigint,
    through      bigint,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
);

CREATE TABLE outbox_message_crashes (
    topic      text,
    outbox_id  bigint,
    partition  integer NOT NULL,
    crashes    integer NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, outbox_id)
);
