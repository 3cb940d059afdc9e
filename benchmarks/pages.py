"""`python -m benchmarks.pages`: how long pages take with much data, and what ten viewers cost.

The pages: ten million outbox rows in forty partitions, 200,000 dead letters of forty causes, 20,000
open conversations, ninety days of figures.  Every answer is made anew, as for the first who asks
within a second.  Server time is that of the whole answer without a network.

The viewers: each has one page open, which asks for its living part every two seconds as the script
does.  Their pages are served by `streams web`, a process that does nothing else, so that all of its
CPU time is theirs.  Beside it stands what a worker takes for 20,000 messages, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import aiohttp
import psycopg
from rich.table import Table

from benchmarks import crowd
from benchmarks.bench import Bench, console, database, drained, drop, fill, publish, settle
from benchmarks.cpu import cpu
from benchmarks.crowd import Crowd
from streams.broker import kafka
from streams.database import migrate
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import free_port
from streams.dev.postgres import PostgresServer
from streams.registry import configured
from streams.settings import Settings, load
from streams.web.messages import Request, Response
from streams.web.pages import PAGES
from streams.web.site import Site

CROWDED = "crowded"
TARGET_MS = 100.0
TARGET_SHARE = 0.02
RATE = 20_000
EVERY_SECONDS = 2.0
# What ten people look at.
VIEWS = (
    "/",
    "/",
    "/",
    "/",
    "/dead/",
    "/dead/",
    "/workers/",
    "/conversations/",
    "/messages/",
    "/proof/",
)


class Times(NamedTuple):
    """Milliseconds of one page or call: the middle one, the 95th of a hundred, the longest.

    `old` answers were those of the time before, since a new one took longer than a page waits.
    `cpu` is what one takes of PostgreSQL's and our CPU time: on a machine that others use too it
    says more than the clock.
    """

    p50: float
    p95: float
    most: float
    old: int
    cpu: float


async def times(
    settings: Settings, named: Mapping[str, str], rounds: int, programs: Sequence[int | None] = ()
) -> dict[str, Times]:
    """How long every page and call takes, each made anew; `named` are the crowd's addresses.

    `programs` are whose CPU time counts.
    """
    site = Site(settings)
    pages = {page.path: named.get(page.path, page.path) for page in PAGES}
    pages |= {name: address for name, address in named.items() if name not in pages}
    found = {}
    for name, address in pages.items():
        for shape in ("page", "call"):
            asked = address if shape == "page" else _call(address)
            if asked is not None:
                found[f"{name} ({shape})" if shape == "call" else name] = await _timed(
                    site, asked, rounds, programs
                )
    await site.close()
    return found


async def _timed(site: Site, address: str, rounds: int, programs: Sequence[int | None]) -> Times:
    spent, old, before = [], 0, 0.0
    for number in range(rounds + 2):
        if number == 2:
            before = cpu(programs)
        site.shared.renew()
        began = time.perf_counter()
        response = await ask(site, address)
        if number >= 2:  # the first ones open connections and read templates
            spent.append((time.perf_counter() - began) * 1000)
            old += "X-Figures-Old" in response.headers
        if response.status not in (200, 303):
            raise RuntimeError(f"{address} answers {response.status}: {response.body[:200]!r}")
    used = (cpu(programs) - before) / rounds * 1000
    return Times(median(spent), quantiles(spent, n=20)[18], max(spent), old, used)


async def ask(site: Site, address: str) -> Response:
    """What the pages answer to somebody on this machine."""
    path, _, query = address.partition("?")
    accept = "application/json" if path.startswith("/api/") else "text/html"
    headers = [("host", "127.0.0.1"), ("accept", accept)]
    return await site.answer(Request("GET", path, query, headers=headers, peer="127.0.0.1"))


def _call(address: str) -> str | None:
    """The call of the API that tells what this page shows."""
    if address.startswith(("/search", "/metrics")):
        return None
    path, mark, query = address.partition("?")
    return f"/api{path.rstrip('/') or '/overview'}{mark}{query}"


async def viewing(address: str, views: tuple[str, ...], seconds: float) -> int:
    """Have these pages looked at for so long; how often an answer was not `304`."""
    ends, renewed = time.monotonic() + seconds, 0

    async def view(client: aiohttp.ClientSession, path: str, after: float) -> None:
        nonlocal renewed
        tag: dict[str, str] = {}
        await asyncio.sleep(after)  # people do not come all at once
        while time.monotonic() < ends:
            async with client.get(f"{address}{path}?part=live", headers=tag) as answer:
                await answer.read()
                answer.raise_for_status()
                renewed += answer.status == 200
                tag = {"If-None-Match": answer.headers["ETag"]}
            await asyncio.sleep(EVERY_SECONDS)

    async with aiohttp.ClientSession() as client:
        await asyncio.gather(
            *(
                view(client, path, number * EVERY_SECONDS / len(views))
                for number, path in enumerate(views)
            )
        )
    return renewed


class Viewed(NamedTuple):
    """CPU seconds a second that viewers took, and how many living parts they got a second."""

    cpu: float
    renewed: float


async def viewed(bench: Bench, views: tuple[str, ...], seconds: float) -> Viewed:
    """What these viewers cost a process that does nothing else."""
    port = free_port()
    environ = bench.environ(CROWDED, "viewers")
    async with bench.running(environ, "streams", "web", "--port", str(port)) as process:
        address = f"http://127.0.0.1:{port}/outbox"
        await _answers(f"{address}/")
        await viewing(address, views, 3 * EVERY_SECONDS)
        began, before = time.monotonic(), cpu([process.pid])
        renewed = await viewing(address, views, seconds)
        took = time.monotonic() - began
        return Viewed((cpu([process.pid]) - before) / took, renewed / took)


async def _answers(address: str) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(address):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def worked(bench: Bench) -> float:
    """CPU microseconds that a worker takes for a message, draining a topic."""
    drop(bench, "worked")  # of a run before, in a directory that stays
    database(bench, "worked")
    environ = bench.environ("worked", "worked")
    settings = load(environ=environ | {"STREAMS_RELAY__MODE": "poll"})
    list(migrate.migrate(settings, configured(settings)))
    kafka.prepare_topics(settings, ["chat-history"])
    fill(settings.database_url, bench.rows)
    publish(bench, "worked")
    settle(bench)
    async with bench.running(environ, "faust", "-A", "streams.app", "worker") as process:
        return (await drained(environ["DATABASE_URL"], bench.rows, [process])).cpu[0]


def show_times(found: Mapping[str, Times], size: Crowd) -> None:
    """One line a page."""
    told = f"{size.rows:,} rows, {size.dead:,} dead, {size.open:,} open conversations"
    table = Table(title=f"{told}, {os.cpu_count()} cores")
    for column in ("page", "p50 ms", "p95 ms", "most ms", "CPU ms", "old", "target"):
        table.add_column(column, justify="left" if column == "page" else "right")
    for name, each in found.items():
        met = "" if each.p95 < TARGET_MS else f"missed: < {TARGET_MS:.0f}"
        shown = (f"{value:.1f}" for value in (each.p50, each.p95, each.most, each.cpu))
        table.add_row(name, *shown, str(each.old or ""), met)
    console.print(table)


def show_costs(costs: Mapping[str, Viewed], micros: float) -> None:
    """What viewers cost, as a share of what a worker takes at the rate of the target."""
    worker = micros * RATE / 1e6
    table = Table(title=f"ten viewers; a worker at {RATE:,} messages/s takes {worker:.2f} cores")
    for column in ("they look at", "parts a second", "cores", "of a worker's CPU", "target"):
        table.add_column(column, justify="left" if column == "they look at" else "right")
    for name, each in costs.items():
        table.add_row(
            name,
            f"{each.renewed:.1f}",
            f"{each.cpu:.4f}",
            f"{each.cpu / worker:.1%}",
            f"< {TARGET_SHARE:.0%}",
        )
    console.print(table)


def crowded(server: PostgresServer, size: Crowd) -> Settings:
    """The settings of a database with so much in it; one that was filled before is used."""
    filling = f"{CROWDED}_filling"
    with psycopg.connect(server.url, autocommit=True) as connection:
        there = connection.execute("SELECT FROM pg_database WHERE datname = %s", [CROWDED])
        if not there.rowcount:
            connection.execute(f"DROP DATABASE IF EXISTS {filling}".encode())
            connection.execute(f"CREATE DATABASE {filling}".encode())
            environ = {"DATABASE_URL": server.url_of(filling), "STREAMS_RELAY__MODE": "poll"}
            settings = load(environ=environ)
            list(migrate.migrate(settings, configured(settings)))
            for share in crowd.fill(settings.database_url, size):
                console.print(f"filled {share:4.0%}", end="\r")
            connection.execute(f"ALTER DATABASE {filling} RENAME TO {CROWDED}".encode())
    settings = load(environ={"DATABASE_URL": server.url_of(CROWDED)})
    list(migrate.migrate(settings, configured(settings)))
    crowd.flow(settings.database_url)
    return settings


async def main(size: Crowd, rounds: int, seconds: float, messages: int, folder: Path) -> None:
    """Everything, one after the other, on servers of its own."""
    async with PostgresServer(folder / "postgres") as postgres:
        settings = await asyncio.to_thread(crowded, postgres, size)
        named = crowd.addresses(settings.database_url, size)
        programs = (os.getpid(),)  # and its children, the server among them
        show_times(await times(settings, named, rounds, programs), size)
        if seconds:
            # What was filled stays; the topics of a run before would be drained again.
            with tempfile.TemporaryDirectory(
                prefix="outbox-bench-", ignore_cleanup_errors=True
            ) as fresh:
                async with KafkaBroker(Path(fresh)) as broker:
                    bench = Bench(postgres, broker, folder, messages)
                    costs = {
                        "the first page, all of them": await viewed(bench, ("/",) * 10, seconds),
                        "six pages": await viewed(bench, VIEWS, seconds),
                    }
                    show_costs(costs, await worked(bench))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=Crowd().rows)
    parser.add_argument("--dead", type=int, default=Crowd().dead)
    parser.add_argument("--open", type=int, default=Crowd().open)
    parser.add_argument("--rounds", type=int, default=40, help="how often each page is made")
    parser.add_argument(
        "--seconds", type=float, default=30, help="how long viewers look; 0: no viewers"
    )
    parser.add_argument("--messages", type=int, default=200_000, help="what the worker drains")
    parser.add_argument(
        "--directory", type=Path, help="where what was filled stays for another run"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outbox-bench-", ignore_cleanup_errors=True) as fresh:
        directory = options.directory or Path(fresh)
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        asyncio.run(
            main(
                Crowd(options.rows, options.dead, options.open),
                options.rounds,
                options.seconds,
                options.messages,
                directory,
            )
        )
