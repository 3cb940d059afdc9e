"""The two addresses as people and other tools write them, with a driver in the scheme or not.

`DATABASE_URL` and `BROKER_URL` are names that others use too: a service's SQLAlchemy, Django,
Celery. What names another system there is not meant for us, and nobody is refused because of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from streams.errors import SettingsInvalid
from streams.settings.secrets import redact

# As libpq has them, SQLAlchemy (`postgresql+asyncpg`), GeoDjango, and what reads URLs for Django.
DATABASES = ("postgresql", "postgres", "postgis", "psql", "pgsql")
BROKERS = ("kafka",)
VARIABLES = {"database": "DATABASE_URL", "broker": "BROKER_URL"}
# Of SQLAlchemy's dialects, not of libpq.
_DIALECTS_OWN = ("async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func")


def meant_for_us(section: str, url: str) -> bool:
    """Whether the section's generic variable names PostgreSQL, or Kafka, and no other system."""
    scheme = _scheme(url)
    return scheme is None or scheme in (DATABASES if section == "database" else BROKERS)


def hint(section: str, environ: Mapping[str, str] = os.environ) -> str:
    """What to say where an address is missing although its generic variable is set.

    It is '' where there is nothing to say.
    """
    name = VARIABLES[section]
    url = environ.get(name)
    if not url or meant_for_us(section, url):
        return ""
    whose = "PostgreSQL" if section == "database" else "Kafka"
    return (
        f" ({name} is {_scheme(url)}://..., which is not {whose}'s:"
        f" STREAMS_{section.upper()}__URL is ours alone)"
    )


def database_address(url: str) -> str:
    """The plain `postgresql://` URL that libpq takes; SettingsInvalid when it is none."""
    if not is_database(url):
        raise SettingsInvalid(
            f"setting 'database.url' is {redact(url)!r}: expected postgresql://user@host:port/database"
        )
    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        return url
    return f"postgresql://{_for_libpq(rest) if scheme.endswith('+asyncpg') else rest}"


def bootstrap_servers(url: str) -> str:
    """Kafka's servers, `host:port[,host:port]`; SettingsInvalid when it names none."""
    if not is_bootstrap(url):
        raise SettingsInvalid(
            f"setting 'broker.url' is {redact(url)!r}: expected host:port[,host:port]"
        )
    return url.removeprefix("kafka://")


def is_database(url: str) -> bool:
    """Whether it is a URL of PostgreSQL, with or without a driver's name."""
    # Not urlsplit: some Pythons refuse a bracket that is not the first of several hosts.
    authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    hosts = authority.rpartition("@")[2].split(",")
    matches = [re.fullmatch(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?", host) for host in hosts]
    ports = [host and (host[1] or "5432") for host in matches]
    return _scheme(url) in DATABASES and all(port and 1 <= int(port) <= 65535 for port in ports)


def is_bootstrap(url: str) -> bool:
    """Whether it names servers as host:port[,host:port]."""
    servers = url.removeprefix("kafka://").split(",")
    matches = [
        re.fullmatch(r"(?:[\w.-]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})", server.strip())
        for server in servers
    ]
    return all(server and 1 <= int(server[1]) <= 65535 for server in matches)


def _scheme(url: str) -> str | None:
    """The scheme without a driver; None when there is none."""
    scheme, separator, _ = url.partition("://")
    return (
        scheme.partition("+")[0].lower()
        if separator and re.fullmatch(r"[\w+.-]+", scheme)
        else None
    )


def _for_libpq(rest: str) -> str:
    """asyncpg calls libpq's `sslmode` `ssl`, and SQLAlchemy has options of its own for it."""
    address, question, query = rest.partition("?")
    options = [(name, value) for name, value in parse_qsl(query) if name not in _DIALECTS_OWN]
    named = [
        ("sslmode" if name == "ssl" else name, "require" if value == "true" else value)
        for name, value in options
    ]
    return f"{address}{question}{urlencode(named)}" if named else address
