"""`streams doctor`: everything that is wrong, what to do, and where the runbook says more."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from streams.cli.choose import say, say_json
from streams.cli.console import plain_fault
from streams.database import migrate
from streams.errors import ServiceUnreachable
from streams.operate.deployment import deployment
from streams.operate.faults import Fault, database_away, faults_of
from streams.registry import configured
from streams.settings import load
from streams.terminal import printable

RUNBOOK = "docs/monitoring/runbook.md"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a stable shape.")
def doctor(as_json: bool) -> None:
    """Say what is wrong with this deployment, and what to do about it.

    The list that pages and metrics have, and what only Kafka tells. Exit code 1 when something
    needs somebody now, 3 when PostgreSQL cannot be reached.
    """
    settings = load()
    registry = configured(settings)
    code = 0
    try:
        with migrate.connection(settings) as connection:
            migrate.check(connection)
            connection.rollback()
            faults = faults_of(deployment(connection, settings, registry))
    except ServiceUnreachable as error:
        faults, code = [database_away(str(error))], error.exit_code
    if as_json:
        say_json([plain_fault(fault) for fault in faults])
    else:
        _show(faults)
    sys.exit(code or int(any(fault.severity == "bad" for fault in faults)))


def _show(faults: Sequence[Fault]) -> None:
    for fault in faults:
        say(printable(f"{fault.severity}: {fault.title}"))
        say(printable(f"  do: {fault.do}"))
        say(f"  see {RUNBOOK}#{fault.anchor}")
    if not faults:
        say("nothing is wrong")
