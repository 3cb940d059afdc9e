"""`streams audit`: compare outbox, states, topics and effects.

It ends with 1 when anything is wrong.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from streams import audit
from streams.cli.bar import bar
from streams.cli.choose import say, say_json
from streams.cli.console import me
from streams.database import migrate
from streams.registry import configured
from streams.settings import load
from streams.terminal import printable


@click.command("audit")
@click.option(
    "--full",
    is_flag=True,
    help="Everything there is, instead of what is new since the last audit; counters too.",
)
@click.option("--repair", is_flag=True, help="Send again what was lost.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=audit.GRACE,
    show_default=True,
    help="Seconds overdue.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=audit.PATIENCE,
    show_default=True,
    help="Seconds that workers get to catch up.",
)
@click.option(
    "--age",
    type=click.FloatRange(min=0),
    default=audit.AGE,
    show_default=True,
    help="Seconds that a message may wait to be published or read.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a stable shape.")
def command(
    full: bool, repair: bool, grace: float, patience: float, age: float, as_json: bool
) -> None:
    """Prove that nothing was lost, doubled or put in another order, on the live system.

    Exit code 0: all is well. 1: something is wrong. 2: PostgreSQL refuses. 3: PostgreSQL or
    Kafka cannot be reached.
    """
    settings = load()
    registry = configured(settings)
    who = me() if repair else None
    with migrate.connection(settings) as connection, bar("audit", 1.0) as advance:
        migrate.check(connection)

        def progress(done: int, total: int) -> None:
            advance(done / max(1, total))

        report = audit.audit(
            connection,
            settings,
            registry,
            full=full,
            repair_as=who,
            grace=grace,
            patience=patience,
            age=age,
            advance=progress,
            waits=lambda line: say(f"streams: {line}", err=True),
        )
    if as_json:
        say_json(report.plain())
    else:
        _show(report)
    sys.exit(1 if report.wrong else 0)


def _show(report: audit.Report) -> None:
    scope = "everything" if report.complete else "what is new and what was left"
    say(
        f"{report.messages:,} messages looked at ({scope}, ids {report.first} to {report.until}) in"
        f" {report.seconds:.1f} s; {report.late:,} late, {report.left:,} to look at again"
    )
    for source, count in report.foreign.items():
        say(f"{count:,} messages of {source} looked at: states and effects")
    for topic, numbers in report.lagging.items():
        say(f"workers are behind: {topic} {', '.join(map(str, numbers))}")
    for note in report.notes:
        say(f"note: {note}")
    for kind, entry in report.wrong.items():
        say(f"\n{kind}: {entry['count']:,} ({entry['meaning']})")
        for example in entry["examples"][:5]:
            say("  " + _line(example))
        if entry["count"] > 5:
            say("  ...")
    if report.repaired:
        say(f"\nsent again: {report.repaired:,}")
    say("\nsomething is wrong" if report.wrong else "nothing is wrong")


def _line(example: dict[str, Any]) -> str:
    return "  ".join(f"{name} {printable(str(value))}" for name, value in example.items())
