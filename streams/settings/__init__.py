"""Settings: `faust.yml`, overridden by the environment, else the dev services that run here.

`STREAMS_<SECTION>__<KEY>` (`STREAMS_RELAY__MODE=poll`) wins over `DATABASE_URL` and `BROKER_URL`,
and both over the file; the addresses are looked at when somebody needs them. An unknown key, a
wrong type or an impossible combination raises SettingsInvalid with key, value and expectation.
Secrets never print.
"""

from __future__ import annotations

from streams.settings.combinations import LOOPBACK, refused_bind
from streams.settings.secrets import public, redact
from streams.settings.sections import (
    AGENTS,
    FILE,
    RETRY_SUFFIX,
    Broker,
    Log,
    Outbox,
    Settings,
    Telemetry,
    Topic,
    Web,
)
from streams.settings.sources import DEV_SERVICES, load

__all__ = [
    "AGENTS",
    "DEV_SERVICES",
    "FILE",
    "LOOPBACK",
    "RETRY_SUFFIX",
    "Broker",
    "Log",
    "Outbox",
    "Settings",
    "Telemetry",
    "Topic",
    "Web",
    "load",
    "public",
    "redact",
    "refused_bind",
]
