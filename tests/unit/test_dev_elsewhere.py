"""A trial and a test work on their own servers alone, whatever else the settings name."""

from __future__ import annotations

from pathlib import Path

from streams.dev.supervisor import elsewhere
from streams.settings import load
from streams.testing.deployment import _alone

PRODUCTION = {
    "DATABASE_URL": "postgresql://app@db.example/app",
    "STREAMS_WEB__DATABASE_URL": "postgresql://pages@replica.example/app",
    "STREAMS_WEB__ACTS_URL": "postgresql://acts@db.example/app",
    "STREAMS_WEB__PROBE": "127.0.0.1:6067",
    "STREAMS_OUTBOX__ARCHIVE": "s3://production/outbox",
}
HERE = "postgresql://streams@127.0.0.1:5433/streams"


def test_what_streams_up_starts_keeps_away_from_other_databases_and_archives() -> None:
    kept_away = elsewhere(load(environ=PRODUCTION), HERE, Path("/project/.dev/archive"))
    settings = load(environ=PRODUCTION | kept_away | {"STREAMS_DATABASE__URL": HERE})
    assert (settings.database_url, settings.web.database_url, settings.web.acts_url) == (HERE,) * 3
    assert settings.outbox.archive == "/project/.dev/archive"
    assert elsewhere(load(environ={}), HERE, Path("x")) == {}


def test_so_does_the_deployment_of_a_test() -> None:
    values = _alone(load(environ=PRODUCTION), HERE, "127.0.0.1:9092", "t")
    assert values["database"]["url"] == HERE
    assert {values["web"][name] for name in ("database_url", "acts_url", "probe")} == {None}
    assert values["outbox"]["archive"] is None
