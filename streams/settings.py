"""Settings: `faust.yml`, overridden by the environment, falling back to the dev services that `streams up` runs here.

`DATABASE_URL`, `BROKER_URL` and `STREAMS_<SECTION>__<KEY>` (`STREAMS_RELAY__MODE=poll`) win over the file. An unknown
key, a wrong type or an impossible combination raises SettingsInvalid with key, value and expectation. Secrets never
print.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
import orjson
import yaml

from streams.errors import SettingsInvalid
from streams.expectation import explain

FILE = "faust.yml"
RETRY_SUFFIX = "-retry"
DEV_SERVICES = Path(".dev") / "services.json"

Positive = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Name = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,60}\Z", description="1 to 60 lower case letters, digits and underscores")
]
Prefix = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._-]{0,100}\Z", description="at most 100 letters, digits, dots, underscores and dashes"
    ),
]
Group = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._-]{1,150}\Z", description="1 to 150 letters, digits, dots, underscores and dashes"
    ),
]
Source = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._-]{1,249}\Z", description="1 to 249 letters, digits, dots, underscores and dashes"
    ),
]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(f'{name}={_public(name, value)!r}' for name, value in values)})"


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
    """What business code may enqueue, and how the table is partitioned."""

    enabled: bool = True
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 900_000
    partition_rows: Annotated[int, msgspec.Meta(ge=1000)] = 5_000_000
    partitions_ahead_days: Seconds = 3.0


class Topic(_Section, frozen=True):
    """How a topic is created, what its partition count must be, and what its records look like.

    An envelope topic is another system's: `source` names that system, by default with the topic's name.
    """

    partitions: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 8
    replication_factor: Positive = 1
    retention_hours: Positive = 168
    format: Literal["outbox", "envelope"] = "outbox"
    source: Source | None = None


class Relay(_Section, frozen=True):
    """Which relay publishes committed rows; relays of one name share a slot, one leads, the others stand by."""

    name: Name = "outbox"
    mode: Literal["auto", "cdc", "poll", "debezium"] = "auto"
    publication: Name = "outbox_pub"
    floor_interval: Seconds = 0.5
    sweep_interval: Seconds = 5.0
    poll_interval: Seconds = 0.05
    shards: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    notify: bool = False
    backoff_limit: Seconds = 10.0
    wal_warn: Bytes = 1_000_000_000
    wal_limit: Bytes | None = None


class Connect(_Section, frozen=True):
    """Where Kafka Connect is, for relay mode debezium, and whether the relay manages its connector there."""

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


class Web(_Section, frozen=True):
    """Where each worker serves its pages."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 6066


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
    agents: tuple[str, ...] = ()
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
        """The PostgreSQL URL; SettingsInvalid says what to set when there is none."""
        if not self.database.url:
            raise SettingsInvalid(f"no database: set DATABASE_URL or database.url in {FILE}, or run `streams up` here")
        return self.database.url

    @property
    def broker_url(self) -> str:
        """Kafka's bootstrap servers, `host:port[,host:port]`; SettingsInvalid says what to set when there are none."""
        if not self.broker.url:
            raise SettingsInvalid(f"no broker: set BROKER_URL or broker.url in {FILE}, or run `streams up` here")
        return self.broker.url.removeprefix("kafka://")

    def topic_settings(self, name: str) -> Topic:
        """Settings of one topic: its own entry under `topics` (without prefix), else the defaults under `topic`.

        A retry topic has those of the topic whose conversations it wakes.
        """
        own = name.removeprefix(self.broker.topic_prefix)
        return self.topics.get(own) or self.topics.get(own.removesuffix(RETRY_SUFFIX), self.topic)


def load(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, *, dev_services: Path | None = None
) -> Settings:
    """Settings from `path` (default `$STREAMS_CONFIG`, else `faust.yml` here) and the environment.

    A missing file means defaults, unless it was named. `dev_services` is the note `streams up` leaves beside the file.
    """
    named = path or (Path(environ["STREAMS_CONFIG"]) if environ.get("STREAMS_CONFIG") else None)
    file = named or Path(FILE)
    if named is not None and not named.is_file():
        raise SettingsInvalid(f"settings file {named} does not exist")
    raw = _read(file) if file.is_file() else {}
    _override(raw, environ)
    dev = _dev_services(dev_services or file.parent / DEV_SERVICES)
    for section in ("database", "broker"):
        values = raw.setdefault(section, {})
        if isinstance(values, dict) and not values.get("url"):
            values["url"] = dev.get(f"{section}_url")
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(_refusal(error, raw)) from None
    _check(settings)
    return settings


def public(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with every secret replaced by `***`."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    for section in (plain["database"], plain["broker"], plain["connect"]):
        section.update({key: _public(key, value) for key, value in section.items()})
    return plain


def redact(url: str) -> str:
    """The URL without its password, and without its query, which may hold another one."""
    scheme, separator, rest = url.rpartition("://")
    # A password may hold any of :/?#@ unescaped, so that urlsplit would find it in the path: the last @ ends it.
    login, at, place = rest.rpartition("@")
    place, question, _ = place.partition("?")
    if not separator and not at and not re.fullmatch(r"[\w.:,\[\]-]*", place):
        return "***"  # `host=... password=...`, or anything else that is no address
    user, colon, _ = login.partition(":")
    return f"{scheme}{separator}{user}{':***' if colon else ''}{at}{place}{'?***' if question else ''}"


def _public(name: str, value: Any) -> Any:
    """A value as it may be shown."""
    if not isinstance(value, str) or not value:
        return value
    return redact(value) if name == "url" else "***" if name == "sasl_password" else value


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise SettingsInvalid(f"{file}{line} is not YAML: {getattr(error, 'problem', None) or 'broken'}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsInvalid(f"{file} is not YAML: {error}") from None  # 2026-13-45 looks like a date
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SettingsInvalid(f"{file} is a {type(raw).__name__}: expected sections (database:, broker:, ...)")
    # A section whose keys are all commented out is null.
    return {key: value if value is not None else [] if key == "agents" else {} for key, value in raw.items()}


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if not name.startswith("STREAMS_") or name == "STREAMS_CONFIG":
            continue
        section, _, key = name.removeprefix("STREAMS_").lower().partition("__")
        if key:
            target = raw.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsInvalid(f"{name}: {section!r} is a {type(target).__name__}: expected a section of keys")
            # A password is not YAML: what holds text is taken as it is, and empty means unset.
            optional = _text_keys().get((section, key))
            target[key] = _scalar(name, text) if optional is None else None if optional and not text else text
        else:
            raw[section] = _scalar(name, text)
    for name, section in (("DATABASE_URL", "database"), ("BROKER_URL", "broker")):
        if environ.get(name):
            target = raw.setdefault(section, {})
            if isinstance(target, dict):
                target["url"] = environ[name]


@cache
def _text_keys() -> dict[tuple[str, str], bool]:
    """The (section, key) of every text or choice, and whether it may be unset."""
    found = {}
    for section, kind in get_type_hints(Settings).items():
        for key, hint in get_type_hints(kind).items() if isinstance(kind, type) else ():
            kinds = {hint} if get_origin(hint) is Literal else set(get_args(hint) or (hint,))
            if all(each in (str, NoneType) or get_origin(each) is Literal for each in kinds):
                found[section, key] = NoneType in kinds
    return found


def _scalar(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        secret = name.startswith(("STREAMS_DATABASE", "STREAMS_BROKER", "STREAMS_CONNECT"))
        raise SettingsInvalid(f"{name} is {'***' if secret else repr(text)}: expected a YAML value") from None


def _dev_services(note: Path) -> dict[str, Any]:
    """What `streams up` wrote, while its supervisor still lives."""
    try:
        found = orjson.loads(note.read_bytes())
        pid = found["pid"]
        os.kill(pid, 0)
    except PermissionError:
        pass  # alive, but somebody else's
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return {}
    return found if isinstance(found, dict) and pid > 0 else {}


_WORDS = {
    "object": "a section of keys",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def _word(kind: str) -> str:
    return _WORDS.get(kind, kind)


def _refusal(error: msgspec.ValidationError, raw: dict[str, Any]) -> str:
    """Key as a person writes it, offending value, expectation."""
    key, expected = explain(error, Settings)
    if expected == "expected only declared fields":
        return _unknown(key, raw)
    if key.startswith("topics[...]"):
        key = key.replace("[...]", f".{_bad_topic(raw['topics'])}", 1)
    elif expected.endswith(" for a key"):
        bad = next(name for name in _at(raw, key) if not isinstance(name, str))
        return f"setting {f'{key}.{bad}'.lstrip('.')!r} is a key of type {type(bad).__name__}: expected text"
    expected = re.sub(r"`([\w |]+)`", lambda found: " or ".join(map(_word, found[1].split(" | "))), expected)
    return f"setting {key!r} is {_shown(key, _at(raw, key))}: {expected}"


def _unknown(key: str, raw: dict[str, Any]) -> str:
    """Its value is not repeated: a misspelt `sasl_password` has one too."""
    kind: Any = Settings
    if key.startswith("topics"):
        name = _bad_topic(raw["topics"])
        key, kind, values = f"topics.{name}", Topic, raw["topics"][name]
    else:
        kind, values = (get_type_hints(Settings)[key], raw[key]) if key else (Settings, raw)
    unknown = next(name for name in values if name not in kind.__struct_fields__)
    full = f"{key}.{unknown}" if key else unknown
    return f"unknown setting {full!r}: expected one of {', '.join(kind.__struct_fields__)}"


def _bad_topic(topics: dict[str, Any]) -> str:
    for name, values in topics.items():
        try:
            msgspec.convert(values, Topic)
        except msgspec.ValidationError:
            return name
    return "[...]"


def _at(raw: Any, key: str) -> Any:
    """The value at `relay.name`, `agents[1]`; topic names may hold dots themselves."""
    if not key:
        return raw
    for name, value in raw.items() if isinstance(raw, dict) else ():
        if key == name:
            return value
        if isinstance(name, str) and key.startswith((f"{name}.", f"{name}[")):
            return _at(value, key[len(name) :].lstrip("."))
    item = re.fullmatch(r"\[(\d+)\]", key)
    return raw[int(item[1])] if item and isinstance(raw, list) else None


def _shown(key: str, value: Any) -> str:
    """Whoever writes `database: postgresql://user:password@...` does not see it again either."""
    if key.endswith(("url", "password")) or (
        key in ("database", "broker", "connect") and isinstance(value, str | list)
    ):
        return "***"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _check(settings: Settings) -> None:
    """Combinations that cannot work."""
    url, broker = settings.database.url, settings.broker
    if url is not None and not _database(url):
        raise SettingsInvalid(
            f"setting 'database.url' is {redact(url)!r}: expected postgresql://user@host:port/database"
        )
    if broker.url is not None and not _bootstrap(broker.url):
        raise SettingsInvalid(f"setting 'broker.url' is {redact(broker.url)!r}: expected host:port[,host:port]")
    _check_login(broker)
    _check_relay(settings.relay)
    _check_connect(settings.connect)
    _check_formats(settings)
    if settings.relay.wal_limit is not None and settings.relay.wal_limit < settings.relay.wal_warn:
        raise SettingsInvalid(
            f"setting 'relay.wal_limit' is {settings.relay.wal_limit}: "
            f"expected at least relay.wal_warn ({settings.relay.wal_warn})"
        )
    if settings.worker.lock_timeout >= settings.worker.handler_timeout:
        raise SettingsInvalid(
            f"setting 'worker.lock_timeout' is {settings.worker.lock_timeout}: "
            f"expected less than worker.handler_timeout ({settings.worker.handler_timeout})"
        )
    if settings.web.host not in ("127.0.0.1", "::1", "localhost"):
        raise SettingsInvalid(
            f"setting 'web.host' is {settings.web.host!r}: expected a loopback address (127.0.0.1, ::1, localhost), "
            "because the pages have no credentials yet"
        )


def _check_login(broker: Broker) -> None:
    protocol = broker.security_protocol
    if protocol.startswith("SASL") != (broker.sasl_mechanism is not None):
        raise SettingsInvalid(
            f"setting 'broker.sasl_mechanism' is {broker.sasl_mechanism!r}: "
            f"expected one exactly when broker.security_protocol ({protocol}) is SASL_*"
        )
    for key, value in (("sasl_username", broker.sasl_username), ("sasl_password", broker.sasl_password)):
        if (broker.sasl_mechanism is not None) != bool(value):
            raise SettingsInvalid(
                f"setting 'broker.{key}' is {'***' if value else value!r}: "
                f"expected one exactly when broker.security_protocol ({protocol}) is SASL_*"
            )
    if broker.ssl_cafile and not protocol.endswith("SSL"):
        raise SettingsInvalid(
            f"setting 'broker.ssl_cafile' is {broker.ssl_cafile!r}: "
            f"expected none unless broker.security_protocol ({protocol}) is SSL or SASL_SSL"
        )


def _check_formats(settings: Settings) -> None:
    if settings.topic.format != "outbox":
        raise SettingsInvalid(
            "setting 'topic.format' is 'envelope': expected 'outbox', an envelope topic is named under 'topics'"
        )
    for key, topic in {
        "topic": settings.topic,
        **{f"topics.{name}": each for name, each in settings.topics.items()},
    }.items():
        if topic.format == "outbox" and topic.source is not None:
            raise SettingsInvalid(
                f"setting '{key}.source' is {topic.source!r}: expected none unless {key}.format is envelope"
            )


def _check_relay(relay: Relay) -> None:
    for key, value, usual in (("shards", relay.shards, 1), ("notify", relay.notify, False)):
        if value != usual and relay.mode != "poll":
            raise SettingsInvalid(
                f"setting 'relay.{key}' is {value}: expected {usual} unless relay.mode ({relay.mode}) is poll"
            )


def _check_connect(connect: Connect) -> None:
    if connect.url is not None and not re.fullmatch(r"https?://[^/\s?#]+/?", connect.url):
        raise SettingsInvalid(f"setting 'connect.url' is {redact(connect.url)!r}: expected http://host:port")
    if connect.register and connect.url is None:
        raise SettingsInvalid("setting 'connect.register' is True: expected false unless connect.url is set")


def _database(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("postgresql", "postgres") and parts.port != 0
    except ValueError:
        return False  # a port that is no number, a bracket that does not close


def _bootstrap(url: str) -> bool:
    servers = url.removeprefix("kafka://").split(",")
    found = [re.fullmatch(r"(?:[\w.-]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})", server.strip()) for server in servers]
    return all(server and 1 <= int(server[1]) <= 65535 for server in found)
