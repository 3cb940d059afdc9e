"""What `faust -A streams.app worker` runs: the worker's Faust app with its pages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click
import faust

from streams import telemetry
from streams.broker.topics import Survey
from streams.errors import StreamsError, UsageError
from streams.figures.metrics import process_metrics
from streams.registry import configured, look_here
from streams.settings import Settings, load, refused_bind
from streams.terminal import printable
from streams.web.worker import add_pages
from streams.worker import preflight
from streams.worker.app import assemble
from streams.worker.figures import WorkerFigures
from streams.worker.group_entry import GroupEntry
from streams.worker.health import WorkerHealth
from streams.worker.process import WorkerProcess
from streams.worker.run.persister import Persister
from streams.worker.topic_watch import TopicWatch
from streams.worker.vitals import WorkerVitals

T = TypeVar("T")


def build() -> faust.App:
    """The app from faust.yml and the environment; a worker checks its services before it starts."""
    settings = load()
    look_here()
    registry = configured(settings)
    persister, watch = Persister(settings, registry), TopicWatch()
    figures = WorkerFigures(persister.database, settings.worker.group, registry.agents)
    entry = GroupEntry(settings, registry)
    app = assemble(settings, registry, persister, figures, entry, watch.ids)
    patience = 3 * settings.worker.handler_timeout + 10
    pulse = WorkerHealth(app, persister.database, registry.consumed, patience, lambda: watch.change)
    site = add_pages(app, settings, pulse)
    vitals = WorkerVitals(app, settings, persister, pulse, watch.ids)
    site.process = lambda: process_metrics(figures.counters, vitals.now())

    conf: Any = app.conf  # typed as if a Worker could only be a class

    def check() -> None:
        telemetry.setup(settings.telemetry, "worker")
        survey = Survey(settings)
        cluster = preflight.check(settings, registry, _pages(app, settings), survey)
        conf.broker_client_id = entry.enter()
        watch.begin(survey, cluster, pulse.has_lost)
        persister.database.end_if_gone_back(settings)

    conf.Worker = partial(
        WorkerProcess,
        reports=settings.log,
        check=partial(_checked, check),
        leave=persister.suspects.leave,
        beside=lambda: figures.run(vitals.now, lambda: vitals.lags(figures)),
        goodbye=figures.end,
    )
    return app


def _pages(app: faust.App, settings: Settings) -> tuple[str, int] | None:
    """Where the pages will be: Faust's own options may have changed it since.

    UsageError when others could read them.
    """
    conf = app.conf
    if not conf.web_enabled:
        return None
    if refused := refused_bind(settings.web, conf.web_bind):
        raise UsageError(f"--web-bind is {conf.web_bind!r}: {refused}")
    return conf.web_bind, conf.web_port


def _checked(step: Callable[[], T]) -> T:
    """The step's result; an error on purpose ends the process with one line and its exit code."""
    try:
        return step()
    except StreamsError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(printable(f"streams: {error}"), err=True)
        sys.exit(error.exit_code)


app: faust.App = _checked(build)
