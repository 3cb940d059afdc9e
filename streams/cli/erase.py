"""`streams erase`: take the text of one person's messages out of the outbox."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from streams.cli.bar import bar
from streams.cli.choose import say
from streams.cli.console import database, me
from streams.database import query
from streams.errors import UsageError
from streams.operate.erase import Erased, Person, erase
from streams.operate.replay import Operator
from streams.settings import Settings

SEGMENT = timedelta(days=7)
"""For how long Kafka writes into one segment, as it does where nobody said otherwise."""


@click.command("erase")
@click.option("--key", help="The conversation.")
@click.option(
    "--where", help="BIZ_TYPE.FIELD=VALUE: messages of this biz_type with this value in a field."
)
@click.option("--why", required=True, help="The reason, written down.")
@click.option("--who", default=me, help="Default: your user and machine.")
@click.option(
    "--force",
    is_flag=True,
    help="Unsettled messages too: a record that nobody has read yet is persisted all the same.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def command(
    key: str | None, where: str | None, why: str, who: str, force: bool, dry_run: bool
) -> None:
    """Take the text of one person's settled messages out of the outbox; the rows stay, without it.

    Run it as the owner of the tables.  Exit code 1 when messages were left because they are not
    settled.
    """
    person = _person(key, where)
    erased, shown = Erased(), 0.0
    with database() as (settings, connection):
        steps = erase(connection, person, Operator(who, why), force=force, dry=dry_run)
        with bar("erase", 1.0) as advance:
            for erased in steps:
                advance(erased.share - shown)
                shown = erased.share
        restored = connection.exec_driver_sql(query("restored_tables")).scalars().all()
        lines = _kept(settings, erased, restored)
    done = "would be erased" if dry_run else "erased"
    say(
        f"{len(erased.ids)} rows {done}"
        + (f", {erased.foreign} of other systems" if erased.foreign else "")
    )
    for line in lines:
        say(line)
    if erased.open and not force:
        say(
            f"{len(erased.open)} messages are not settled and were left,"
            f" for example {min(erased.open)}: see --force"
        )
    if erased.foreign_open:
        say(f"{erased.foreign_open} messages of other systems are not settled and were left")
    if erased.unclear:
        say(
            f"{len(erased.unclear)} messages of other systems cannot be looked into and were left,"
            f" for example {erased.unclear[0]}"
        )
    if erased.foreign_open or erased.unclear or (erased.open and not force):
        sys.exit(1)


def _person(key: str | None, where: str | None) -> Person:
    if (key is None) == (where is None):
        raise UsageError("expected either --key or --where")
    if where is None:
        return Person(key=key)
    named, equals, value = where.partition("=")
    biz_type, dot, field = named.rpartition(".")
    if not (equals and dot and biz_type and field):
        raise UsageError(f"--where is {where!r:.80}: expected BIZ_TYPE.FIELD=VALUE")
    return Person(biz_type=biz_type, field=field, value=value)


def _kept(settings: Settings, erased: Erased, restored: Sequence[str]) -> list[str]:
    """What others still hold of it, or may."""
    lines = []
    for topic, written in sorted(erased.topics.items()):
        hours = settings.topic_settings(topic).retention_hours
        until = written + timedelta(hours=hours) + SEGMENT
        if until > datetime.now(UTC):
            lines.append(
                f"topic {topic} may hold the records until {until:%Y-%m-%d %H:%M} UTC: Kafka keeps"
                " a segment until its newest record is too old"
            )
    if erased.foreign:
        lines.append("topics of other systems hold their records for as long as those say")
    if erased.ids or erased.foreign:
        lines.append(
            "what agents wrote, backups, and PostgreSQL's log until it is recycled hold it too"
        )
    # These may hold what is in the outbox no more, however little was found there.
    if settings.outbox.archive:
        lines.append("the archive holds what went there before: this does not reach into it")
    if restored:
        lines.append(f"what was restored may hold it: {', '.join(restored)}")
    return lines
