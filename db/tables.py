"""The tables as SQLAlchemy sees them; their names are a public interface, a test compares them with migrations."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TIMESTAMP
from sqlalchemy.types import UserDefinedType

metadata = MetaData()

STATUSES = ("retrying", "parked", "replaying", "consumed", "dead", "discarded")
TERMINAL = ("consumed", "dead", "discarded")

# Debezium's event router takes the record's timestamp only from a timestamp without time zone in milliseconds.
MILLISECONDS = TIMESTAMP(timezone=False, precision=3)
UTC_NOW = text("(clock_timestamp() AT TIME ZONE 'UTC')")


class PgLsn(UserDefinedType[str]):
    """A position in the write-ahead log, as text: `16/B374D848`."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "PG_LSN"


arrived = Sequence("outbox_arrived", metadata=metadata)
applied = Sequence("outbox_applied", metadata=metadata)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True, cache=1), primary_key=True),
    Column("biz_type", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("traceparent", Text),
    Column("resend_of", BigInteger),
    Column("created_at", MILLISECONDS, nullable=False, server_default=UTC_NOW),
    CheckConstraint("octet_length(key) BETWEEN 1 AND 1024", name="outbox_key_length"),
    CheckConstraint("octet_length(topic) BETWEEN 1 AND 249", name="outbox_topic_length"),
    Index("outbox_resends", "resend_of", postgresql_where=text("resend_of IS NOT NULL")),
    postgresql_partition_by="RANGE (id)",
)

outbox_direct = Table(
    "outbox_direct",
    metadata,
    Column("outbox_id", BigInteger, primary_key=True, autoincrement=False),
)

outbox_biz_types = Table(
    "outbox_biz_types",
    metadata,
    Column("biz_type", Text, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("max_bytes", Integer, nullable=False),
    # As the topic is made; NULL where an older version registered it.
    Column("partitions", Integer),
    Column("replication_factor", Integer),
    Column("retention_hours", Integer),
    Column("retired_at", DateTime(timezone=True)),
    # The payload's field that is the key; NULL where an older version registered it.
    Column("key_field", Text),
)

outbox_state = Table(
    "outbox_state",
    metadata,
    # Eight-byte columns first: the row stays narrow.
    Column("outbox_id", BigInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger),
    Column("applied", BigInteger),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("partition", Integer),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("replays", SmallInteger, nullable=False, server_default=text("0")),
    Column("status", Text, nullable=False),
    Column("arrived", BigInteger),
    Column("source_id", BigInteger),
    Column("next_retry_at", DateTime(timezone=True)),
    Column("topic", Text),
    Column("key", Text),
    Column("error_code", Text),
    Column("error", Text),
    CheckConstraint(
        "status IN ('retrying', 'parked', 'replaying', 'consumed', 'dead', 'discarded')", name="outbox_state_status"
    ),
    CheckConstraint("length(error) <= 2000", name="outbox_state_error_length"),
    Index("outbox_state_open", "topic", "key", "arrived", postgresql_where=text("topic IS NOT NULL")),
    Index("outbox_state_dead", "outbox_id", postgresql_where=text("status = 'dead'")),
    postgresql_partition_by="RANGE (outbox_id)",
)

outbox_foreign = Table(
    "outbox_foreign",
    metadata,
    Column("source", Text, primary_key=True),
    Column("outbox_id", BigInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger),
    Column("applied", BigInteger),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("created_at", MILLISECONDS),
    Column("partition", Integer),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("replays", SmallInteger, nullable=False, server_default=text("0")),
    Column("open", Boolean, nullable=False, server_default=text("false")),
    Column("status", Text, nullable=False),
    Column("arrived", BigInteger),
    Column("next_retry_at", DateTime(timezone=True)),
    Column("biz_type", Text),
    Column("topic", Text),
    Column("key", Text),
    Column("error_code", Text),
    Column("error", Text),
    # Verbatim, as the envelope had it, while the message is open or dead; `replaced` is what an operator's edit replaced.
    Column("payload", Text),
    Column("replaced", Text),
    CheckConstraint("source <> ''", name="outbox_foreign_source"),
    CheckConstraint("status IN ('retrying', 'parked', 'consumed', 'dead', 'discarded')", name="outbox_foreign_status"),
    CheckConstraint("length(error) <= 2000", name="outbox_foreign_error_length"),
    Index("outbox_foreign_open", "source", "topic", "key", "arrived", postgresql_where=text("open")),
    Index("outbox_foreign_dead", "source", "outbox_id", postgresql_where=text("status = 'dead'")),
)

outbox_run_crashes = Table(
    "outbox_run_crashes",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("first_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("crashes", Integer, nullable=False),
    Column("crashes_alone", Integer, nullable=False, server_default=text("0")),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

outbox_partition_crashes = Table(
    "outbox_partition_crashes",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("orderly", Boolean, nullable=False, server_default=text("false")),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("first_offset", BigInteger),
    Column("through", BigInteger),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

outbox_message_crashes = Table(
    "outbox_message_crashes",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("outbox_id", BigInteger, primary_key=True, autoincrement=False),
    Column("partition", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

outbox_rejects = Table(
    "outbox_rejects",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("last_offset", BigInteger),
    Column("count", BigInteger, nullable=False, server_default=text("1")),
    UniqueConstraint("topic", "partition", "offset", name="outbox_rejects_record"),
)

outbox_topics = Table(
    "outbox_topics",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("topic_id", Text, primary_key=True),
    Column("cluster_id", Text, nullable=False),
    Column("partitions", Integer, nullable=False),
    Column("noted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

relay_position = Table(
    "relay_position",
    metadata,
    Column("name", Text, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("floor", BigInteger, nullable=False, server_default=text("0")),
    Column("lsn", PgLsn),
    Column("leader", Text),
    Column("pid", Integer),
    Column("heartbeat", DateTime(timezone=True)),
    Column("identity", Text),
    Column("asked", Text),
    Column("wish", Text),
    Column("doing", Text),
    Column("reason", Text),
    Column("rate", Double),
    Column("publication", Text),
    Column("beat", BigInteger),
    CheckConstraint("wish IN ('cdc', 'poll', 'debezium')", name="relay_position_wish"),
)

relay_shards = Table(
    "relay_shards",
    metadata,
    Column("name", Text, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("shards", Integer, nullable=False),
    Column("floor", BigInteger, nullable=False),
    Column("leader", Text),
    Column("pid", Integer),
    Column("heartbeat", DateTime(timezone=True)),
)

outbox_actions = Table(
    "outbox_actions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("who", Text, nullable=False),
    Column("act", Text, nullable=False),
    Column("outbox_id", BigInteger),
    Column("what", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("why", Text),
)

outbox_audit_ranges = Table(
    "outbox_audit_ranges",
    metadata,
    Column("first_id", BigInteger, primary_key=True, autoincrement=False),
    Column("last_id", BigInteger, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("reach", JSONB, nullable=False),
)

outbox_audit_left = Table(
    "outbox_audit_left",
    metadata,
    Column("outbox_id", BigInteger, primary_key=True, autoincrement=False),
)

outbox_audits = Table(
    "outbox_audits",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("seconds", Double, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("messages", BigInteger, nullable=False),
    Column("wrong", BigInteger, nullable=False),
    Column("report", JSONB, nullable=False),
)

outbox_stats = Table(
    "outbox_stats",
    metadata,
    Column("bucket", DateTime(timezone=True), primary_key=True),
    Column("process", Text, primary_key=True),
    Column("biz_type", Text, primary_key=True),
    Column("relayed", BigInteger, nullable=False, server_default=text("0")),
    Column("consumed", BigInteger, nullable=False, server_default=text("0")),
    Column("retried", BigInteger, nullable=False, server_default=text("0")),
    Column("dead", BigInteger, nullable=False, server_default=text("0")),
    Column("latency", ARRAY(BigInteger), nullable=False, server_default=text("'{}'::bigint[]")),
)

chat_histories = Table(
    "chat_histories",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False, server_default=text("''")),
    Column("outbox_id", BigInteger, nullable=False),
    Column("user_id", BigInteger, nullable=False),
    Column("chat_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("message_content", Text, nullable=False),
    Column("reasoning_content", Text),
    Column("reasoning_duration_seconds", BigInteger),
    Column("retry_group_id", Text),
    Column("retry_index", BigInteger),
    Column("retry_from_user_message_id", BigInteger),
    Column("retry_from_assistant_message_id", BigInteger),
    Column("tokens_consumed", BigInteger),
    Column("created_at", MILLISECONDS, nullable=False),
    UniqueConstraint("source", "outbox_id", name="chat_histories_message"),
)

agent_chats = Table(
    "agent_chats",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False),
    Column("chat_id", Text, primary_key=True),
    Column("message_count", BigInteger, nullable=False),
    Column("last_message_at", MILLISECONDS, nullable=False),
    # Each message counts its chat: a new version of a row that fits its page touches no index.
    postgresql_with={"fillfactor": 50},
)
