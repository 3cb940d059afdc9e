"""Settings: `faust.yml`, overridden by the environment, falling back to the dev services that `streams up` started here.

`DATABASE_URL`, `BROKER_URL` and `STREAMS_<SECTION>__<KEY>` (`STREAMS_RELAY__MODE=poll`) win over the file. An unknown
key, a wrong type or an impossible combination raises SettingsInvalid with key, value and expectation. Secrets never print.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import orjson
import yaml

from streams.errors import SettingsInvalid

FILE = "faust.yml"
DEV_SERVICES = Path(".dev") / "services.json"

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,60}$")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Database(_Section):
    """Where the business database is; the outbox lives beside the business tables."""

    url: str | None = None
    connect_timeout: Positive = 10


class Broker(_Section):
    """Where Kafka is, and how to log in."""

    url: str | None = None
    topic_prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,100}$")] = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    ssl_cafile: str | None = None


class Outbox(_Section):
    """What business code may enqueue, and how the table is partitioned."""

    enabled: bool = True
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 900_000
    partition_rows: Annotated[int, msgspec.Meta(ge=1000)] = 5_000_000
    partitions_ahead_days: Seconds = 3.0


class Topic(_Section):
    """How a topic is created and what its partition count must be."""

    partitions: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 8
    replication_factor: Positive = 1
    retention_hours: Positive = 168
    format: Literal["outbox", "envelope"] = "outbox"


class Relay(_Section):
    """Which relay publishes committed rows; relays of one name share a slot, one leads, the others stand by."""

    name: Name = "outbox"
    mode: Literal["auto", "cdc", "poll", "debezium"] = "auto"
    publication: Name = "outbox_pub"
    floor_interval: Seconds = 0.5
    backoff_limit: Seconds = 10.0


class Worker(_Section):
    """How a worker consumes: runs of records, and transactions in flight."""

    group: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,150}$")] = "outbox-streams"
    run_records: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    run_bytes: Annotated[int, msgspec.Meta(ge=1000)] = 4_000_000
    transactions: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    handler_timeout: Seconds = 30.0
    lock_timeout: Seconds = 10.0
    session_timeout: Seconds = 10.0
    commit_interval: Seconds = 1.0


class Web(_Section):
    """Where each worker serves its pages."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 6066


class Log(_Section):
    """How processes report."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Section):
    """The whole of faust.yml, checked."""

    database: Database = Database()
    broker: Broker = Broker()
    agents: tuple[str, ...] = ()
    outbox: Outbox = Outbox()
    topic: Topic = Topic()
    topics: dict[str, Topic] = {}
    relay: Relay = Relay()
    worker: Worker = Worker()
    web: Web = Web()
    log: Log = Log()

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
        """Settings of one topic: its own entry under `topics` (without prefix), else the defaults under `topic`."""
        return self.topics.get(name.removeprefix(self.broker.topic_prefix), self.topic)


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
        if isinstance(values, dict) and not values.get("url") and dev:
            values["url"] = dev[f"{section}_url"]
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(_explain(str(error), raw)) from None
    _check(settings)
    return settings


def public(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with every secret replaced by `***`."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    for section in ("database", "broker"):
        if plain[section]["url"]:
            plain[section]["url"] = redact(plain[section]["url"])
    if plain["broker"]["sasl_password"]:
        plain["broker"]["sasl_password"] = "***"
    return plain


def redact(url: str) -> str:
    """The URL without its password, and without its query, which may hold another one."""
    parts = urlsplit(url)
    netloc = parts.netloc
    if "@" in netloc:
        user, _, host = netloc.rpartition("@")
        netloc = f"{user.partition(':')[0]}:***@{host}" if ":" in user else f"{user}@{host}"
    return parts._replace(netloc=netloc, query="***" if parts.query else "").geturl()


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise SettingsInvalid(f"{file}{line} is not YAML: {getattr(error, 'problem', None) or 'broken'}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SettingsInvalid(f"{file} must hold sections (database:, broker:, ...), not {type(raw).__name__}")
    return {key: {} if value is None and key != "agents" else value for key, value in raw.items()}


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if not name.startswith("STREAMS_") or name == "STREAMS_CONFIG":
            continue
        section, _, key = name.removeprefix("STREAMS_").lower().partition("__")
        if key:
            target = raw.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsInvalid(f"{name}: {section!r} is not a section")
            target[key] = _scalar(name, text)
        else:
            raw[section] = _scalar(name, text)
    for name, section in (("DATABASE_URL", "database"), ("BROKER_URL", "broker")):
        if environ.get(name):
            target = raw.setdefault(section, {})
            if isinstance(target, dict):
                target["url"] = environ[name]


def _scalar(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsInvalid(f"{name} is not a YAML value: {text!r}") from None


def _dev_services(note: Path) -> dict[str, str] | None:
    """What `streams up` wrote, while its supervisor still lives."""
    try:
        found: dict[str, Any] = orjson.loads(note.read_bytes())
        os.kill(int(found["pid"]), 0)
    except PermissionError:
        return found  # alive, but somebody else's
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _explain(error: str, raw: dict[str, Any]) -> str:
    """msgspec's message with the key as a person writes it, and the offending value."""
    text, _, path = error.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    if text.startswith("Object contains unknown field"):
        unknown = text.split("`")[1]
        full = f"{key}.{unknown}" if key else unknown
        return f"unknown setting {full!r}: see `streams settings` for every key"
    value: Any = raw
    for part in key.replace("[...]", "").split(".") if key else []:
        value = value.get(part) if isinstance(value, dict) else value
    secret = key.endswith(("url", "password"))
    return f"setting {key!r} is {'***' if secret else repr(value)}: {text[0].lower()}{text[1:]}"


def _check(settings: Settings) -> None:
    """Combinations that cannot work."""
    url = settings.database.url
    if url is not None and urlsplit(url).scheme not in ("postgresql", "postgres"):
        raise SettingsInvalid(f"setting 'database.url' is {redact(url)}: expected postgresql://user@host:port/database")
    broker = settings.broker
    if broker.url is not None and not _bootstrap(broker.url):
        raise SettingsInvalid(f"setting 'broker.url' is {redact(broker.url)!r}: expected host:port[,host:port]")
    if broker.security_protocol.startswith("SASL") != (broker.sasl_mechanism is not None):
        raise SettingsInvalid(
            f"setting 'broker.sasl_mechanism' is {broker.sasl_mechanism!r}: "
            f"expected one exactly when broker.security_protocol ({broker.security_protocol}) is SASL_*"
        )
    if broker.sasl_mechanism and not (broker.sasl_username and broker.sasl_password):
        raise SettingsInvalid("settings 'broker.sasl_username' and 'broker.sasl_password' are both needed for SASL")
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


def _bootstrap(url: str) -> bool:
    servers = url.removeprefix("kafka://").split(",")
    return all(host and port.isdigit() for host, _, port in (server.strip().rpartition(":") for server in servers))
