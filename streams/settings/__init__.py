"""Settings: `faust.yml`, overridden by the environment, falling back to the dev services that `streams up` runs here.

`DATABASE_URL`, `BROKER_URL` and `STREAMS_<SECTION>__<KEY>` (`STREAMS_RELAY__MODE=poll`) win over the file. An unknown
key, a wrong type or an impossible combination raises SettingsInvalid with key, value and expectation. Secrets never
print.
"""

from __future__ import annotations

from streams.settings.combinations import LOOPBACK, refused_bind
from streams.settings.secrets import public, redact
from streams.settings.sections import (
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
