"""`streams relay status`: one relay at a glance; exit code 1 when that is bad news."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.broker import beat
from streams.cli.choose import say, say_json
from streams.cli.console import database, plain_fault
from streams.operate.faults import relay_faults, went_back
from streams.operate.relay_status import Member, RelayStatus, SlotHealth, standing
from streams.operate.snapshot import Limits
from streams.terminal import printable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a stable shape.")
def status(as_json: bool) -> None:
    """Show who leads and stands by, how far it is, and what its slot holds back.

    Exit code 1 when nobody leads, nothing is published, or the slot is lost.
    """
    with database() as (settings, connection):
        gone_back = beat.looked(settings, connection)
        [relay_status] = standing(connection, settings.relay.name)
    faults = relay_faults(
        relay_status, Limits(wal_warn=settings.relay.wal_warn, wal_limit=settings.relay.wal_limit)
    )
    if gone_back:
        faults.insert(0, went_back(gone_back))
    if as_json:
        say_json({**asdict(relay_status), "faults": [plain_fault(fault) for fault in faults]})
    else:
        _show(relay_status)
        for fault in faults:
            say(f"streams: {printable(fault.line)}", err=True)
    sys.exit(int(any(fault.severity == "bad" for fault in faults)))


def _show(relay_status: RelayStatus) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    for name, value in _lines(relay_status):
        table.add_row(name, Text(printable(value)))
    # Never cut: wider than the terminal if need be.
    Console(highlight=False, width=max(400, Console().width)).print(table)


def _lines(relay_status: RelayStatus) -> list[tuple[str, str]]:
    lag, reason = relay_status.lag, f": {relay_status.reason}" if relay_status.reason else ""
    behind = [] if lag.bytes is None else [f"{size(lag.bytes)} of log"]
    return [
        ("relay", relay_status.name),
        ("mode", _mode(relay_status)),
        (
            "doing",
            f"{relay_status.doing or 'nothing'}{reason}" if relay_status.leader else "nothing",
        ),
        ("leader", _member(relay_status.leader) if relay_status.leader else "nobody"),
        *(
            [("shards", ", ".join(map(_share, relay_status.sharing)))]
            if relay_status.sharing
            else []
        ),
        ("standbys", ", ".join(map(_member, relay_status.standbys)) or "none"),
        ("floor", str(relay_status.floor)),
        ("position", relay_status.position or "none"),
        ("lag", ", ".join([*behind, f"{lag.rows:,} rows", f"{lag.seconds:.1f} s"])),
        ("slot", _slot(relay_status.slot)),
        ("rate", f"{relay_status.rate if relay_status.leader else 0:,.0f} rows/s"),
    ]


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value, units = float(count), ["bytes", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:,.0f} {units[0]}" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def _mode(relay_status: RelayStatus) -> str:
    notes = (
        [f"started with {relay_status.asked}"]
        if relay_status.asked and relay_status.asked != relay_status.mode
        else []
    )
    notes += [f"switched to {relay_status.wish}"] if relay_status.wish else []
    return " ".join([relay_status.mode or "none", *([f"({', '.join(notes)})"] if notes else [])])


def _member(member: Member) -> str:
    return f"{member.host}:{member.pid} ({member.mode})"


def _share(member: Member) -> str:
    return f"{','.join(map(str, member.shards))} by {member.host}:{member.pid}"


def _slot(slot: SlotHealth | None) -> str:
    if slot is None:
        return "none"
    safe = (
        ""
        if slot.safe_bytes is None
        else f", {size(max(0, slot.safe_bytes))} more before it is lost"
    )
    return (
        f"{slot.wal_status}, {'read' if slot.active else 'not read'}, holds back"
        f" {size(slot.held_bytes)} of log{safe}"
    )
