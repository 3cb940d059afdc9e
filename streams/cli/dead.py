"""`streams dead`: list, show, replay and discard dead messages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
from sqlalchemy import Connection

from streams import operate
from streams.cli.bar import bar
from streams.cli.choose import MESSAGE, SINCE, Commands, say, say_json
from streams.cli.console import database, signed
from streams.cli.console import show as show_table
from streams.cli.trace import describe
from streams.errors import UsageError
from streams.message_id import MessageId
from streams.operate import history, operations
from streams.registry import configured
from streams.terminal import printable

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = 50
PREVIEWS = 5
"""How often --yes previews what others act on meanwhile."""
LETTER = (
    "outbox_id",
    "biz_type",
    "key",
    "attempts",
    "replays",
    "held",
    "since",
    "error_code",
    "error",
)
OPERATION = (
    "id",
    "act",
    "state",
    "planned",
    "done",
    "failed",
    "left_alone",
    "who",
    "why",
    "created_at",
    "reason",
)
GROUP = (
    "fingerprint",
    "messages",
    "conversations",
    "biz_type",
    "error_code",
    "first",
    "last",
    "example",
    "error",
)


@click.group(cls=Commands)
def dead() -> None:
    """Look at dead messages, replay or discard them."""


def _filters(command: F) -> F:
    for option in (
        click.option(
            "--since", type=SINCE, help="Only those that died since: 30m, 12h, 7d, or a time."
        ),
        click.option(
            "--error",
            help="Only those with this error code, or this fingerprint (`dead list --group`).",
        ),
        click.option("--key", help="Only this conversation."),
        click.option("--biz-type", help="Only this kind of message."),
        click.option("--source", help="Only messages of this other system; '' for our own."),
    ):
        command = option(command)
    return command


def _acts(command: F) -> F:
    for option in (
        signed,
        click.option(
            "--yes", is_flag=True, help="Do not ask before working more than one message."
        ),
        click.option(
            "--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many a second."
        ),
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        click.option("--all", "everything", is_flag=True, help="Every dead message there is."),
        click.option("--limit", type=click.IntRange(min=1), help="At most so many."),
    ):
        command = option(command)
    return click.argument("outbox_ids", nargs=-1, type=MESSAGE)(_filters(command))


@dead.command("list")
@_filters
@click.option(
    "--limit", type=click.IntRange(min=1), default=SHOWN, show_default=True, help="At most so many."
)
@click.option("--group", is_flag=True, help="One line for each kind of error.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(group: bool, as_json: bool, **filters: Any) -> None:
    """List dead messages, oldest first, without their text."""
    choice = operate.Choice(**filters)
    with database() as (_, connection):
        letters: Sequence[Any] = (
            operate.groups(connection, choice) if group else operate.letters(connection, choice)
        )
    if as_json:
        say_json(letters)
    elif not letters:
        say("no dead message fits")
    else:
        show_table(letters, GROUP if group else LETTER)


@dead.command()
@click.argument("outbox_id", type=MESSAGE)
@click.option("--payload", is_flag=True, help="Show its text too: it may be what your users wrote.")
def show(outbox_id: MessageId, payload: bool) -> None:
    """Tell a dead message's whole story."""
    with database() as (_, connection):
        stories = history.messages(connection, [outbox_id])
        if not stories or stories[0].status != "dead":
            status = stories[0].status if stories else "not known"
            raise operate.NotDead(
                f"message {outbox_id} is {status}, expected dead (`streams trace` tells any"
                " message)"
            )
        say(describe(stories[0]))
        if payload:
            say(printable(operate.payload(connection, stories[0].outbox_id)))


@dead.command("replay")
@_acts
@click.option(
    "--force",
    is_flag=True,
    help=f"Also those that were replayed {operate.MOST_REPLAYS} times already.",
)
@click.option(
    "--payload",
    type=click.File("rb"),
    help="Replay one message with the JSON of this file (- for stdin).",
)
@click.option(
    "--careful",
    is_flag=True,
    help=(
        "First 1 message, then 10, then 89, each when the ones before have their fates;"
        " stops when they fail again."
    ),
)
def replay_(
    outbox_ids: tuple[MessageId, ...], payload: Any, force: bool, careful: bool, **options: Any
) -> None:
    """Send dead messages again: those named, or those that fit.

    Each conversation in its original order.
    """
    if payload is not None:
        _edit(outbox_ids, payload.read(), options)
        return

    _act("replay", "replayed", outbox_ids, options | {"force": force, "careful": careful})


@dead.command("discard")
@_acts
def discard_(outbox_ids: tuple[MessageId, ...], **options: Any) -> None:
    """Give dead messages up for good; their rows stay for the record."""

    _act("discard", "discarded", outbox_ids, options | {"force": False, "careful": False})


def _act(verb: str, done: str, outbox_ids: tuple[MessageId, ...], options: dict[str, Any]) -> None:
    filters = {
        name: options[name] for name in ("biz_type", "source", "key", "error", "since", "limit")
    }
    choice = operate.Choice(ids=tuple(dict.fromkeys(outbox_ids)) or None, **filters)
    if replace(choice, limit=None).empty != options["everything"]:
        raise UsageError(f"expected outbox ids, a filter, or --all to {verb} every dead message")
    operator = operate.Operator(options["who"], options["why"])
    with database() as (_, connection):
        ids = operate.plan(connection, choice)
        if options["dry_run"] or not ids:
            shown = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
            say(f"would {verb} {_messages(len(ids))}: {shown}" if ids else "no dead message fits")
            return
        if len(ids) == 1 and not options["careful"]:
            _one(connection, verb, ids, choice, operator, force=options["force"])
            say(f"{done} 1 message")
            return
        try:
            previewed = _previewed(connection, verb, choice, operator, options)
            _confirm(verb, previewed.planned, options["yes"])
            submitted = _submitted(connection, previewed, operator, options)
        except operations.NothingDead:
            # Somebody else was faster.
            say("no dead message fits")
            return
        ended = _worked(connection, submitted)
    _tell(done, ended)


def _previewed(
    connection: Connection,
    verb: str,
    choice: operate.Choice,
    operator: operate.Operator,
    options: Mapping[str, Any],
) -> operations.Operation:
    return operations.preview(
        connection,
        verb,
        choice,
        operator,
        force=options["force"],
        rate=options["rate"],
        at_once=not options["careful"],
    )


def _submitted(
    connection: Connection,
    previewed: operations.Operation,
    operator: operate.Operator,
    options: Mapping[str, Any],
) -> operations.Operation:
    """As it was previewed; or as it is now for --yes, when somebody else acted meanwhile."""
    for _ in range(PREVIEWS - 1 if options["yes"] else 0):
        try:
            return operations.submit(connection, previewed.id, operator)
        except operations.PreviewChanged:
            previewed = _previewed(connection, previewed.act, previewed.choice, operator, options)
    return operations.submit(connection, previewed.id, operator)


def _one(
    connection: Connection,
    verb: str,
    ids: list[MessageId],
    choice: operate.Choice,
    operator: operate.Operator,
    *,
    force: bool,
) -> None:
    if verb == "replay":
        steps = operate.replay(connection, ids, operator, choice, force=force)
    else:
        steps = operate.discard(connection, ids, operator, choice)
    for _ in steps:
        pass


def _worked(connection: Connection, operation: operations.Operation) -> operations.Operation:
    """The operation when it has ended, worked here unless somebody else already does."""
    with bar(operation.act, operation.planned) as advance:
        worked = 0
        while operation.state == "running":
            with operations.held(connection, operation.id) as taken:
                pause = (
                    operations.work(connection, operation.id) if taken else operations.POLL_SECONDS
                )
            operation = operations.operation(connection, operation.id)
            advance(operation.done + operation.left_alone - worked)
            worked = operation.done + operation.left_alone
            time.sleep(pause or 0.0)
    return operation


def _tell(done: str, ended: operations.Operation) -> None:
    notes = []
    if ended.circling:
        notes.append(f"{ended.circling:,} replayed too often already (--force)")
    if ended.gone:
        notes.append(f"{ended.gone:,} no longer dead, erased or without a row")
    say(f"{done} {_messages(ended.done)}" + (f"; left alone: {', '.join(notes)}" if notes else ""))
    if ended.state == "stopped":
        say(
            f"operation {ended.id} stopped: {ended.reason}; `streams dead resume {ended.id}` goes"
            " on"
        )
        sys.exit(1)


@dead.command()
@click.argument("number", type=click.IntRange(min=1))
@signed
def resume(number: int, who: str, why: str | None) -> None:
    """Let an operation go on that was stopped, or whose process died."""
    with database() as (_, connection):
        ended = _worked(
            connection, operations.resume(connection, number, operate.Operator(who, why))
        )
    _tell("replayed" if ended.act == "replay" else "discarded", ended)


@dead.command()
@click.argument("number", type=click.IntRange(min=1))
@signed
def stop(number: int, who: str, why: str | None) -> None:
    """Stop an operation; what was sent takes its way."""
    with database() as (_, connection):
        stopped = operations.stop(connection, number, operate.Operator(who, why))
    say(
        f"operation {number} is {stopped.state}: {stopped.done:,} of {_messages(stopped.planned)}"
        " were worked"
    )


@dead.command("operations")
@click.option(
    "--limit", type=click.IntRange(min=1), default=SHOWN, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def operations_(limit: int, as_json: bool) -> None:
    """List bulk acts, the newest first."""
    with database() as (_, connection):
        known = operations.operations(connection, limit=limit)
    if as_json:
        say_json(known)
    elif not known:
        say("there was no operation")
    else:
        show_table(known, OPERATION)


def _edit(outbox_ids: tuple[MessageId, ...], text: bytes, options: dict[str, Any]) -> None:
    others = (
        "biz_type",
        "source",
        "key",
        "error",
        "since",
        "limit",
        "everything",
        "rate",
        "dry_run",
    )
    if len(outbox_ids) != 1 or any(options[name] for name in others):
        raise UsageError(
            "--payload replays one message: expected one outbox id, and no filter, rate or dry run"
        )
    with database() as (settings, connection):
        operator = operate.Operator(options["who"], options["why"])
        operate.edit(
            connection,
            outbox_ids[0],
            text,
            configured(settings),
            settings.outbox.max_bytes,
            operator,
        )
    say(f"replayed message {outbox_ids[0]} with the new payload")


def _messages(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


def _confirm(verb: str, count: int, yes: bool) -> None:
    if count == 1 or yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"would {verb} {_messages(count)}: expected --yes, or a terminal to ask")
    click.confirm(f"{verb} {_messages(count)}?", abort=True)
