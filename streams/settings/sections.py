"""The shape of faust.yml: its sections, their keys, types, limits and defaults."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from streams.errors import SettingsInvalid
from streams.settings.addresses import bootstrap_servers, database_address, hint
from streams.settings.secrets import visible

FILE = "faust.yml"
# The package with our own agent, chat history.
AGENTS = "streams.agents"
RETRY_SUFFIX = "-retry"

Positive = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Days = Annotated[float, msgspec.Meta(gt=0, le=365)]
Kept = Annotated[float, msgspec.Meta(gt=0, le=36_500)]  # days
MessageId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9_]{1,60}\Z",
        description="1 to 60 lower case letters, digits and underscores",
    ),
]
Prefix = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._-]{0,100}\Z",
        description="at most 100 letters, digits, dots, underscores and dashes",
    ),
]
Group = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._-]{1,150}\Z",
        description="1 to 150 letters, digits, dots, underscores and dashes",
    ),
]
Source = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._-]{1,249}\Z",
        description="1 to 249 letters, digits, dots, underscores and dashes",
    ),
]

Secret = Annotated[str, msgspec.Meta(min_length=32, max_length=1000)]
Role = Literal["viewer", "support", "operator", "admin"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        fields = ", ".join(f"{name}={visible(name, value)!r}" for name, value in values)
        return f"{type(self).__name__}({fields})"


class Database(_Section, frozen=True):
    """Where the business database is; the outbox lives beside the business tables."""

    url: str | None = None
    connect_timeout: Positive = 10


class Broker(_Section, frozen=True):
    """Where Kafka is, and how to log in."""

    url: str | None = None
    topic_prefix: Prefix = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    ssl_cafile: str | None = None


class Outbox(_Section, frozen=True):
    """What business code may enqueue, how the table is partitioned, and how long it is kept."""

    enabled: bool = True
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 900_000
    partition_rows: Annotated[int, msgspec.Meta(ge=1000)] | None = None
    partitions_ahead_days: Seconds = 3.0
    retention_days: Kept | None = None
    dead_days: Kept | None = None
    foreign_days: Kept | None = None
    rejects_days: Kept | None = 90.0
    actions_days: Kept | None = 365.0
    audits_days: Kept | None = 90.0
    archive: Annotated[str, msgspec.Meta(min_length=1)] | None = None


class Topic(_Section, frozen=True):
    """How a topic is created, what its partition count must be, and what its records look like.

    An envelope topic is another system's: `source` names that system, by default with the topic's
    name.
    """

    partitions: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 8
    replication_factor: Positive = 1
    retention_hours: Positive = 168
    format: Literal["outbox", "envelope"] = "outbox"
    source: Source | None = None


class Relay(_Section, frozen=True):
    """Which relay publishes committed rows.

    Relays of one name share a slot: one leads, the others stand by.
    """

    name: MessageId = "outbox"
    mode: Literal["auto", "cdc", "poll", "debezium"] = "auto"
    publication: MessageId = "outbox_pub"
    floor_interval: Seconds = 0.5
    sweep_interval: Seconds = 5.0
    poll_interval: Seconds = 0.05
    shards: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    notify: bool = False
    backoff_limit: Seconds = 10.0
    wal_warn: Bytes = 1_000_000_000
    wal_limit: Bytes | None = None


class Connect(_Section, frozen=True):
    """Where Kafka Connect is, for relay mode debezium.

    It says too whether the relay manages its connector there.
    """

    url: str | None = None
    register: bool = False


class Worker(_Section, frozen=True):
    """How a worker consumes: runs of records, and transactions in flight."""

    group: Group = "outbox-streams"
    run_records: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    run_bytes: Annotated[int, msgspec.Meta(ge=1000)] = 4_000_000
    transactions: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    handler_timeout: Seconds = 30.0
    lock_timeout: Seconds = 10.0
    session_timeout: Seconds = 10.0
    commit_interval: Seconds = 1.0
    unknown_days: Days = 1.0


class User(_Section, frozen=True):
    """Who may log in to the pages, and what that person may do.

    It is a line of `streams web password`.
    """

    password: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^scrypt:[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}:[0-9a-f]{32}:[0-9a-f]{64}\Z",
            description="a line that `streams web password` prints",
        ),
    ]
    role: Role = "viewer"


class Token(_Section, frozen=True):
    """What a program sends as Bearer, by its SHA-256, and what it may do."""

    sha256: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[0-9a-f]{64}\Z", description="64 hex digits, the SHA-256 of the token"
        ),
    ]
    role: Role = "viewer"


class Web(_Section, frozen=True):
    """Where the operators' pages are served, and who may see what.

    `access` is how whoever asks is known: nobody but this machine, users with passwords, or a proxy
    that says it.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 6066
    access: Literal["local", "users", "proxy"] = "local"
    local_text: bool = False
    users: dict[str, User] = {}
    secret: Secret | None = None
    tokens: dict[str, Token] = {}
    trusted_proxies: tuple[str, ...] = ()
    proxy_secret: Secret | None = None
    proxy_role: Role = "viewer"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    probe: str | None = None
    database_url: str | None = None
    acts_url: str | None = None
    environment: Annotated[str, msgspec.Meta(max_length=40)] = ""
    colour: Literal["grey", "blue", "green", "amber", "red", "violet"] = "grey"
    faust_tables: bool = False


class Log(_Section, frozen=True):
    """How processes report."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Telemetry(_Section, frozen=True):
    """Whether relay and workers send spans; where to, the OTEL_* variables say."""

    enabled: bool = False


class Settings(_Section, frozen=True):
    """The whole of faust.yml, checked."""

    database: Database = Database()
    broker: Broker = Broker()
    agents: tuple[str, ...] = (AGENTS,)
    outbox: Outbox = Outbox()
    topic: Topic = Topic()
    topics: dict[str, Topic] = {}
    relay: Relay = Relay()
    connect: Connect = Connect()
    worker: Worker = Worker()
    web: Web = Web()
    log: Log = Log()
    telemetry: Telemetry = Telemetry()

    @property
    def database_url(self) -> str:
        """The PostgreSQL URL, without a driver's name.

        SettingsInvalid says what to set when there is none, or it is none.

        Nothing looks at it before it is asked for: whoever only enqueues needs none.
        """
        if not self.database.url:
            raise SettingsInvalid(
                f"no database: set DATABASE_URL or database.url in {FILE},"
                f" or run `streams up` here{hint('database')}"
            )
        return database_address(self.database.url)

    @property
    def broker_url(self) -> str:
        """Kafka's bootstrap servers, `host:port[,host:port]`.

        SettingsInvalid says what to set when there are none.
        """
        if not self.broker.url:
            raise SettingsInvalid(
                f"no broker: set BROKER_URL or broker.url in {FILE},"
                f" or run `streams up` here{hint('broker')}"
            )
        return bootstrap_servers(self.broker.url)

    @property
    def envelope_sources(self) -> dict[str, str]:
        """Each topic of other systems' messages, prefixed, with its source."""
        return {
            self.broker.topic_prefix + name: topic.source or name
            for name, topic in self.topics.items()
            if topic.format == "envelope"
        }

    def topic_settings(self, name: str) -> Topic:
        """Settings of one topic: its own entry under `topics`, else those under `topic`.

        The entry has no prefix. A retry topic has those of the topic whose conversations it wakes.
        """
        own = name.removeprefix(self.broker.topic_prefix)
        return self.topics.get(own) or self.topics.get(own.removesuffix(RETRY_SUFFIX), self.topic)
