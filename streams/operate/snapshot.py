"""One look at a deployment: all that pages, commands and metrics show, read in one transaction.

Everything here is frozen and knows no database: `streams.operate.look` reads it,
`streams.operate.faults` judges it, and whoever shows it shows the same. Times are aware and the
database's; of a replica, those of its last replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from streams.message_id import MessageId
from streams.operate.relay_status import RelayStatus

MOST = 10_000
"""Pending and published are counted up to this."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many; `more` says that there are more than `number`."""

    number: int
    more: bool = False

    def __str__(self) -> str:
        return f"{self.number:,}{'+' if self.more else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Where the messages are: exact, but for pending and published, which stop at `MOST`.

    `held` is how many of the dead hold their conversation for an operator. `oldest` is when the
    first message without a fate was enqueued, None when every one has its fate.
    """

    pending: Count
    published: Count
    retrying: int
    parked: int
    replaying: int
    held: int
    dead: int
    oldest: datetime | None = None

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way: every message is consumed, dead or discarded."""
        return not (self.pending.number or self.published.number or self.open)

    @property
    def open(self) -> int:
        """How many messages wait for another try, for the one before them, or for their replay."""
        return self.retrying + self.parked + self.replaying


@dataclass(frozen=True, slots=True)
class Gap:
    """One step of the pipeline: outbox, relay, topic, workers, rows.

    `seconds` is None where nobody knows.

    `messages` wait before this step, the first of them for `seconds`.
    """

    name: str
    messages: Count
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """What happened in a second to messages of one biz_type, over the last minute.

    It is approximate, since processes count in buckets.
    """

    biz_type: str
    enqueued: float = 0.0
    relayed: float = 0.0
    consumed: float = 0.0
    retried: float = 0.0
    parked: float = 0.0
    dead: float = 0.0
    skipped: float = 0.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from enqueueing to persisting, as bounds: so many at most.

    None with too few samples to say; inf, which JSON shows as null too, beyond the last bound.
    """

    samples: int
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One life of a process, known by the `id` of this incarnation.

    `kind` is worker, relay or web; `name` the consumer group or the relay. `state` is alive,
    silent (no heartbeat for ten seconds), gone (for a minute) or ended (in order). `runs` are in
    flight; what a run waits for has its SQLSTATE beside it. `figures` are Faust's own, as far as
    runs leave them right. `silent` is seconds since the last heartbeat.
    """

    id: str
    kind: str
    name: str
    host: str
    pid: int
    version: str
    state: str
    # It grows by itself: without it a process that is as it was says so.
    silent: float = field(compare=False)
    started: datetime
    heartbeat: datetime
    ended: datetime | None = None
    address: str | None = None
    partitions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    memory: int | None = None
    runs: int = 0
    pool_used: int | None = None
    pool_size: int | None = None
    waits_for: str | None = None
    waits_code: str | None = None
    waits_since: datetime | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it runs, as host:pid."""
        return f"{self.host}:{self.pid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """How far the group is in one partition.

    `owner` is the `id` of the living worker that has it, None when nobody has it.

    `moved` is when the committed offset changed last, `worked` the time of the last record that was
    worked.
    """

    group: str
    topic: str
    partition: int
    committed: int | None
    end: int | None
    log_start: int | None
    moved: datetime
    at: datetime
    worked: datetime | None = None
    owner: str | None = None

    @property
    def lag(self) -> int | None:
        """Records before the group; None where nobody knows.

        That is so without an end, or when the group never committed and there is no start.
        """
        if self.end is None:
            return None
        begin = self.committed if self.committed is not None else self.log_start
        return None if begin is None else max(0, self.end - begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A conversation that waits, as its first open message says.

    For what, until when, and how many wait behind it.
    """

    source: str
    topic: str
    key: str
    head: MessageId
    status: str
    error_code: str | None
    since: datetime
    due: datetime | None
    behind: int
    attempts: int = 0
    partition: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Dead messages of one kind of error: equal but for numbers.

    `error` is that of the `example`, the newest of them. `sparkline` is how many died in each of
    the last 24 hours, oldest first; empty where it was not asked for.
    """

    fingerprint: str
    biz_type: str | None
    error_code: str | None
    messages: int
    conversations: int
    held: int
    first: datetime
    last: datetime
    example: MessageId
    error: str | None = None
    sparkline: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the last audit found, and what is not proved yet.

    Complete up to `until`, when the newest message that it looked at was enqueued; `missing` and
    `doubled` as it found them, `wrong` everything; `under_way` messages came since or had no fate
    yet.
    """

    id: int
    at: datetime
    complete: bool
    messages: int
    wrong: int
    missing: int
    doubled: int
    until_id: int
    until: datetime | None
    under_way: Count

    @property
    def green(self) -> bool:
        """Whether it found nothing wrong."""
        return not self.wrong


@dataclass(frozen=True, slots=True)
class Pin:
    """A transaction that holds the floor: a session's by `pid`, a prepared one by `gid`."""

    pid: int | None
    gid: str | None
    application: str | None
    state: str | None
    since: datetime


@dataclass(frozen=True, slots=True)
class UnknownBizType:
    """Messages that wait for a worker that knows their biz_type.

    Since when, and until when the first of them may.
    """

    biz_type: str
    messages: int
    since: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Room:
    """For how many ids there are partitions of the outbox.

    Seconds are what that lasts at the present rate; None without a rate.
    """

    ids: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class TopicLimit:
    """How long Kafka keeps a consumed topic's records, in seconds; None: for ever."""

    topic: str
    retention: float | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """Records of another system's topic that Kafka deleted before workers had read them."""

    topic: str
    partition: int
    first: int
    last: int
    records: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Trend:
    """How a gauge went: its value about ten minutes ago, and now."""

    before: float
    now: float
    seconds: float

    @property
    def slope(self) -> float:
        """How much it grows a second."""
        return (self.now - self.before) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Broker:
    """What was asked of Kafka just now, if anything: `error` says that it does not answer.

    `faults` are what is missing: topics, members of the group, partitions that nobody has.
    """

    error: str | None = None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The settings that faults are measured by."""

    relay: str = "main"
    wal_warn: int = 1 << 30
    wal_limit: int | None = None
    max_attempts: int = 20
    audit_seconds: float | None = 86_400.0
    topics: tuple[str, ...] = ()
    # Those of other systems: only their producers can send again.
    envelopes: frozenset[str] = frozenset()
    # Whose figures of partitions these are; None: of whichever group there are.
    group: str | None = None
    # Whether anything is to go when it is old.
    retains: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A deployment at one moment; what a field holds is said at its type.

    `replica`: read from a standby, `at` is the moment that it shows, `behind` seconds ago.
    `read_only`: the database takes no writes. `projection` is whose figures these are. `versions`
    are those of the living processes. `rejects` are records of the last ten minutes that belong to
    no message, `unserved` topics that nobody tells of any more, with how many messages wait there,
    `deleted` what Kafka deleted unread in the last day of topics whose producers alone
    have it, `recent_dead` those that died in the last five, `usual_dead` how many do so in five
    minutes of the last day. `unsent` is what Kafka lost and PostgreSQL does not let the relay send
    again, a line a topic. `ending` messages have at most three attempts left, `held_since` is when
    the conversation that is held longest began to wait.
    """

    at: datetime
    database: str = ""
    replica: bool = False
    # It grows by itself, as `Process.silent`.
    behind: float = field(default=0.0, compare=False)
    read_only: bool = False
    projection: str = "main"
    limits: Limits = field(default_factory=Limits)
    totals: Totals
    gaps: tuple[Gap, ...] = ()
    rates: tuple[Rate, ...] = ()
    failing: tuple[Rate, ...] = ()
    latency: Latency = field(default_factory=lambda: Latency(0))
    relays: tuple[RelayStatus, ...] = ()
    relays_at: datetime | None = None
    processes: tuple[Process, ...] = ()
    partitions: tuple[Partition, ...] = ()
    waiting: tuple[Head, ...] = ()
    causes: tuple[Cause, ...] = ()
    proof: Proof | None = None
    first_message_at: datetime | None = None
    pins: tuple[Pin, ...] = ()
    unknown: tuple[UnknownBizType, ...] = ()
    room: Room = field(default_factory=lambda: Room(0, None))
    retention: tuple[TopicLimit, ...] = ()
    unsent: tuple[str, ...] = ()
    trends: Mapping[str, Trend] = field(default_factory=dict)
    rejects: int = 0
    unserved: tuple[tuple[str, int], ...] = ()
    deleted: tuple[Deleted, ...] = ()
    recent_dead: int = 0
    usual_dead: float = 0.0
    ending: int = 0
    held_since: datetime | None = None
    broker: Broker | None = None
    gone_back: str | None = None
    crashed: tuple[tuple[str, int], ...] = ()

    @property
    def workers(self) -> tuple[Process, ...]:
        """Those that are shown: alive or silent."""
        return tuple(
            process
            for process in self.processes
            if process.kind == "worker" and process.state in ("alive", "silent")
        )

    @property
    def versions(self) -> tuple[str, ...]:
        """Of what living processes run, each once."""
        return tuple(
            sorted({process.version for process in self.processes if process.state == "alive"})
        )

    @property
    def lag(self) -> int:
        """Records before the group, in all partitions."""
        return sum(partition.lag or 0 for partition in self.partitions)
