"""`streams status`: services, relays, workers and messages, for a person or as stable JSON."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from streams.cli.choose import say, say_json
from streams.cli.console import plain_fault
from streams.cli.progress import CAP, messages, relays
from streams.database import migrate
from streams.dev.probe import Health, health
from streams.dev.workplace import Note, Running, Workplace
from streams.operate.deployment import deployment
from streams.operate.faults import Fault, faults_of, worker_unready
from streams.operate.snapshot import Snapshot
from streams.registry import configured
from streams.settings import Settings, load, redact
from streams.terminal import printable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a stable shape.")
def status(as_json: bool) -> None:
    """Show services, relays, workers and where the messages are.

    Exact: retrying, parked and dead. Capped: pending, and published, which is looked for among the
    newest rows only. What is wrong has one line each (`streams doctor` says more). Exit code 1
    when that needs somebody now, 3 when PostgreSQL cannot be reached.
    """
    settings = load()
    registry = configured(settings)
    note = _note(settings)
    with migrate.connection(settings) as connection:
        migrate.check(connection)
        connection.rollback()
        snapshot = deployment(connection, settings, registry)
    shape, healths = _status(settings, note, snapshot)
    faults = [*faults_of(snapshot), *_unready(shape, healths)]
    if as_json:
        say_json({**shape, "faults": [plain_fault(fault) for fault in faults]})
    else:
        _show(shape, healths)
        for fault in faults:
            say(printable(fault.line))
    if any(fault.severity == "bad" for fault in faults):
        sys.exit(1)


def _note(settings: Settings) -> Note | None:
    """What runs in this folder, if it works on the database that was asked for."""
    note = Workplace(Path.cwd()).note()
    return note if note is not None and note.database_url == settings.database_url else None


def _unready(shape: dict[str, Any], healths: list[Health]) -> list[Fault]:
    """Workers of this folder that do not work."""
    return [
        worker_unready(worker["web"], running=bool(worker["pid"]))
        for worker, answer in zip(shape["workers"], healths, strict=True)
        if not answer.ready
    ]


def _status(
    settings: Settings, note: Note | None, snapshot: Snapshot
) -> tuple[dict[str, Any], list[Health]]:
    """The stable shape, and how each of its workers is."""
    running = _running(note, "worker")
    with ThreadPoolExecutor(max_workers=max(1, len(running))) as pool:
        healths = list(pool.map(lambda worker: health(worker.web or ""), running))
    overview = {
        "services": _services(settings, note),
        "relays": relays(snapshot.relays, [each.pid for each in _running(note, "relay")]),
        "workers": [
            {"pid": each.pid, "web": each.web, "partitions": answer.partitions}
            for each, answer in zip(running, healths, strict=True)
        ],
        "messages": messages(snapshot.totals),
    }
    return overview, healths


def _services(settings: Settings, note: Note | None) -> dict[str, Any]:
    """Where the services are; their pids are known of the dev services only."""
    broker = settings.broker_url if settings.broker.url else None
    postgres = note.postgresql_pid if note and note.database_url == settings.database_url else None
    kafka = note.kafka_pid if note and note.broker_url == broker else None
    return {
        "postgresql": {"pid": postgres, "url": redact(settings.database_url)},
        "kafka": {"pid": kafka, "url": redact(broker) if broker else None},
    }


def _running(note: Note | None, name: str) -> list[Running]:
    """The processes of a line of the Procfile."""
    return [each for each in note.processes if each.name.partition(".")[0] == name] if note else []


def _show(overview: dict[str, Any], healths: list[Health]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "pid", "where", "work"):
        table.add_column(heading, no_wrap=True)
    for name, service in overview["services"].items():
        table.add_row(name, _number(service["pid"]), service["url"] or "not set")
    for relay in overview["relays"]:
        role = f"{relay['mode']}, {'leader' if relay['leader'] else 'standby'}"
        lag = (
            ""
            if relay["lag_rows"] is None
            else f"lag {relay['lag_rows']:,} rows, {relay['lag_seconds']:.1f} s"
        )
        table.add_row("relay", _number(relay["pid"]), role, lag)
    for worker, answer in zip(overview["workers"], healths, strict=True):
        table.add_row("worker", _number(worker["pid"]), worker["web"], _working(answer))
    counts = ", ".join(
        f"{name} {CAP:,}+" if count > CAP else f"{name} {count:,}"
        for name, count in overview["messages"].items()
    )
    # Never cut an address: wider than the terminal if need be.
    console = Console(highlight=False, width=max(120, Console().width))
    console.print(table)
    console.print(f"\nmessages  {counts}")


def _working(answer: Health) -> str:
    if not answer.ready:
        return "not ready"
    topics = [
        f"{topic} {','.join(map(str, ids))}" for topic, ids in answer.partitions.items() if ids
    ]
    return "; ".join(topics) or "standing by"


def _number(pid: int | None) -> str:
    return "" if pid is None else str(pid)
