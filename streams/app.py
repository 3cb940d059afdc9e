"""What `faust -A streams.app worker` runs: the worker's Faust app with its pages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click
import faust

from streams import preflight
from streams.errors import StreamsError
from streams.registry import configured
from streams.settings import load
from streams.web.health import add_health
from streams.worker.assembly import assemble
from streams.worker.persister import Persister
from streams.worker.pulse import Pulse

T = TypeVar("T")


def build() -> faust.App:
    """The app from faust.yml and the environment; a worker checks its services before it starts."""
    settings = load()
    registry = configured(settings)
    persister = Persister(settings, registry)
    app = assemble(settings, registry, persister)
    pulse = Pulse(app, persister, registry.topics, patience=3 * settings.worker.handler_timeout + 10)
    add_health(app, pulse)
    app.on_worker_init.connect(lambda *_, **__: _checked(lambda: preflight.check(settings, registry)))
    return app


def _checked(step: Callable[[], T]) -> T:
    """The step's result; an error on purpose ends the process with one line and its exit code."""
    try:
        return step()
    except StreamsError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"streams: {error}", err=True)
        sys.exit(error.exit_code)


app: faust.App = _checked(build)
