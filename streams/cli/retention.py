"""`streams retention`: take away what is old now, or say what would go, and what holds it up."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict, replace

import click
import psycopg

from streams.archive.write import writer
from streams.cli.choose import say, say_json
from streams.database import connect, migrate
from streams.database.refusals import told
from streams.database.retention import (
    DETACH_TIMEOUT,
    Busy,
    Retention,
    Step,
    holding,
    owner_for,
    periods,
)
from streams.errors import StreamsError, UsageError
from streams.registry import configured
from streams.settings import Settings, load, redact

KEPT = "messages are kept for ever: outbox.retention_days is not set"


@click.command("retention")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--without-archive",
    is_flag=True,
    help="Although what went before is in an archive: from now on there is none.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object for each range of ids.")
def retention(dry_run: bool, without_archive: bool, as_json: bool) -> None:
    """Empty and drop old ranges of the outbox, and delete what else is older than its period.

    The relay that leads does this by itself, if its role may. Exit code 1 when something holds it
    up, with one line each.
    """
    settings = load()
    with migrate.connection(settings) as connection:
        migrate.check(connection)
    if without_archive and settings.outbox.archive is not None:
        raise UsageError("--without-archive: expected no outbox.archive in the settings")
    failed, steps = asyncio.run(_steps(settings, dry_run, without_archive))
    for reason in failed:
        say(f"streams: {reason}", err=True)
    if as_json:
        say_json([asdict(step) for step in steps])
    elif steps:
        say("\n".join(_line(step, dry_run) for step in steps))
    else:
        say(KEPT if settings.outbox.retention_days is None else "nothing is old enough")
    if failed or any(step.reason for step in steps):
        sys.exit(1)


async def _steps(
    settings: Settings, dry_run: bool, unarchived: bool
) -> tuple[list[str], list[Step]]:
    """What of the expiry failed, and what was done with each range."""
    archive, failed = None, list[str]()
    try:
        archive = await writer(settings)
    except StreamsError as reason:
        failed.append(str(reason))
    try:
        async with await connect(
            settings.database_url,
            connect_timeout=settings.database.connect_timeout,
            application_name="streams retention",
            session={"lock_timeout": DETACH_TIMEOUT},
        ) as connection:
            registry = configured(settings)
            kept = periods(settings, registry.topics, registry.envelopes)
            if failed and not dry_run:  # nothing goes that is not archived
                kept = replace(kept, messages=None)
            # What is set and cannot be reached was told already.
            unarchived = unarchived or settings.outbox.archive is not None
            work = Retention(connection, kept, dry=dry_run, archive=archive, unarchived=unarchived)
            if dry_run:
                try:
                    await owner_for(connection)
                except Busy as reason:
                    failed.append(f"nothing would be done: {reason}")
                return failed, [step async for step in work.steps()]
            try:
                async with holding(connection):
                    failed += await work.expire()
                    return failed, [step async for step in work.steps()]
            except Busy as busy:
                raise UsageError(f"nothing was done: {busy}") from None
    except psycopg.Error as error:
        raise told(error, redact(settings.database_url)) from None


def _line(step: Step, dry_run: bool) -> str:
    size = f", {step.bytes / 1e6:,.1f} MB" if step.bytes else ""
    left = f", {step.left} rows are left" if step.left else ""
    done = {
        "empty": "would be emptied" if dry_run else "emptied",
        "drop": "would be dropped" if dry_run else "dropped",
    }
    if step.days is not None:
        said = f"old enough in {step.days:.1f} days"
    elif step.reason is not None:
        said = f"waits: {step.reason}"
    else:
        said = done[step.act]
    return f"messages {step.first} to {step.last}{size}: {said}{left}"
