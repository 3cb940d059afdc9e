"""What grows when nothing should: `python -m benchmarks.soak`, an hour of a deployment in trouble.

Messages come at a steady rate, several in each of the business's transactions. One in five hundred
is refused until somebody mends it and replays what is dead, every five minutes; one in a hundred
fails while a neighbour is away, ten seconds of each minute. Two workers and the relay are killed in
turn, a backup runs every ten minutes, and old messages go, a pass a minute as a leader makes it. In
the end everything has its fate, each effect is there once, and the audit says so.

What is watched: bytes of our tables and of PostgreSQL's log, and memory, file descriptors and
connections of every process. The last column says how the last quarter is beside the second one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import LiteralString

import psutil
import psycopg
from rich.table import Table

from benchmarks.bench import CHATS, Bench, console, database, on_servers, payload
from streams import operate
from streams.audit import audit
from streams.broker import kafka
from streams.database import connect, migrate, partitions, sync_engine
from streams.database.retention import Busy, Periods, Retention, holding
from streams.dev.ports import free_port
from streams.dev.process import Process
from streams.dev.wheels import postgres_bin
from streams.groups import TaskGroup
from streams.registry import configured
from streams.settings import Settings
from streams.settings import load as settings_of

NAME = "soak"
WRITERS = 4
WIDE = 10  # messages of a transaction
POISON, FLAKY = 500, 100  # one message in so many
OPERATOR = operate.Operator("soak", "the cause is mended")
# What may be in a cause's way: the neighbour is away, the data is not mended.
TROUBLE: LiteralString = """
CREATE TABLE trouble (away boolean NOT NULL, broken boolean NOT NULL);
INSERT INTO trouble VALUES (false, true);
CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_ trouble;
BEGIN
    IF NEW.role IN ('poison', 'flaky') THEN
        SELECT * INTO now_ FROM trouble;
        IF NEW.role = 'poison' AND now_.broken THEN
            RAISE EXCEPTION 'broken' USING ERRCODE = '22000';
        ELSIF NEW.role = 'flaky' AND now_.away THEN
            RAISE EXCEPTION 'away';
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER trouble BEFORE INSERT ON chat_histories FOR EACH ROW EXECUTE FUNCTION trouble()"""
SIZES: LiteralString = """
SELECT CASE WHEN c.relname ~ '^outbox(_state)?(_[0-9].*)?$' THEN 'outbox and outbox_state'
            ELSE c.relname END,
       sum(pg_total_relation_size(c.oid))::float8
FROM pg_class AS c
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
  AND c.relname NOT IN ('chat_histories', 'agent_chats', 'trouble')
GROUP BY 1"""
SERVER: LiteralString = """
SELECT (SELECT sum(size)::float8 FROM pg_ls_waldir()),
       (SELECT count(*)::float8 FROM pg_stat_activity WHERE client_port IS NOT NULL),
       (SELECT count(*)::float8 FROM pg_inherits WHERE inhparent = 'outbox'::regclass)"""
# Dead although nothing was wrong with them: a kill must not be charged to those it met.
INNOCENT: LiteralString = """
SELECT count(*)
FROM outbox_dead_letters AS d JOIN outbox AS o ON o.id = d.outbox_id
WHERE o.payload ->> 'role' <> 'poison'"""
LEFT: LiteralString = """
SELECT (SELECT count(*) FROM outbox AS o
        WHERE o.resend_of IS NULL
          AND NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = o.id)),
       (SELECT count(*) FROM outbox_open),
       (SELECT count(*) FROM outbox_dead_letters)"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how fast, and what happens when; seconds."""

    seconds: float
    rate: int
    width: int
    keep: float
    mend: float = 300.0
    kill: float = 60.0
    backup: float = 600.0
    retain: float = 60.0
    sample: float = 10.0


@dataclass(slots=True)
class Happened:
    """What was done meanwhile, and how often."""

    enqueued: int = 0
    replayed: int = 0
    kills: int = 0
    backups: int = 0
    emptied: int = 0
    dropped: int = 0
    waited: int = 0
    innocent: int = 0


@dataclass
class Soak:
    """One deployment, its processes by name, and what was seen of them."""

    bench: Bench
    plan: Plan
    settings: Settings
    environ: Mapping[str, str]
    processes: dict[str, Process] = field(default_factory=dict)
    happened: Happened = field(default_factory=Happened)
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    began: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """The database's."""
        return self.settings.database_url

    def start(self, name: str) -> None:
        """Start the process of this name, again where one was."""
        scripts = Path(sys.executable).parent
        command = (
            ["streams", "relay"]
            if name == "relay"
            else ["faust", "-A", "streams.app", "worker", "-l", "error"]
        )
        own = {"STREAMS_WEB__PORT": str(free_port())}
        process = Process(
            [str(scripts / command[0]), *command[1:]],
            self.bench.directory / f"{NAME}-{name}.log",
            environ={**os.environ, **self.environ, **own},
            cwd=Path.cwd(),
        )
        process.launch()
        self.processes[name] = process

    async def end(self, name: str) -> None:
        """Kill the process of this name."""
        process = self.processes.pop(name)
        process.kill()
        await process.finish(10)

    # What happens.

    async def enqueue(self, writer: int) -> None:
        """A business: its share of the messages, each transaction at its time."""
        pause = WIDE * WRITERS / self.plan.rate
        choose = random.Random(writer)
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            for number in range(int(self.plan.seconds / pause)):
                due = self.began + (number + writer / WRITERS) * pause
                if (ahead := due - time.monotonic()) > 0:
                    await asyncio.sleep(ahead)
                first = (number * WRITERS + writer) * WIDE
                for one in range(first, first + WIDE):
                    role = "poison" if one % POISON == 1 else "flaky" if one % FLAKY == 2 else ""
                    # Not every few seconds the same conversations.
                    key = f"c{choose.randrange(CHATS)}"
                    given = {"role": role} if role else {}
                    text = payload(one, conversation_id=key, **given)
                    await connection.execute(
                        "SELECT outbox_enqueue('chat_history_persist', %s, %s::json)", [key, text]
                    )
                await connection.commit()
                self.happened.enqueued += WIDE
                if time.monotonic() - self.began > self.plan.seconds:
                    return  # slower than it was to be: the rate that was reached is told

    async def trouble(self) -> None:
        """The neighbour goes away and comes back."""
        while True:
            for away, seconds in ((True, 1 / 6), (False, 5 / 6)):
                await self._set("away", away)
                await asyncio.sleep(seconds * min(60.0, self.plan.mend / 2))

    async def mend(self) -> None:
        """An operator finds the cause, mends it and replays; then it breaks again."""
        while True:
            await asyncio.sleep(self.plan.mend)
            await self.replay()
            await asyncio.sleep(min(30.0, self.plan.mend / 3))
            await self._set("broken", True)

    async def mended(self) -> None:
        """Nothing is in anything's way any more."""
        await self._set("away", False)
        await self.replay()

    async def replay(self) -> None:
        """Mend what messages are dead of, and send them again."""
        await self._set("broken", False)
        self.happened.replayed += await asyncio.to_thread(self._replay)

    async def kill(self) -> None:
        """One process after the other, and each is started again as a supervisor does it."""
        while True:
            for name in ("worker.1", "worker.2", "relay"):
                await asyncio.sleep(self.plan.kill)
                await self.end(name)
                self.happened.kills += 1
                self.start(name)

    async def backup(self) -> None:
        """What a business's nightly job does, more often."""
        while True:
            await asyncio.sleep(self.plan.backup / 2)
            dump = [str(postgres_bin() / "pg_dump"), "--data-only", "--file=/dev/null", self.url]
            process = await asyncio.create_subprocess_exec(*dump, stderr=subprocess.DEVNULL)
            try:
                # Nonzero where a table went meanwhile: it is a backup of another moment.
                await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            self.happened.backups += 1
            await asyncio.sleep(self.plan.backup / 2)

    async def retain(self) -> None:
        """What a leader does, which keeps messages as long as Kafka does: an hour at least."""
        periods = Periods(messages=self.plan.keep / 86_400)
        async with await connect(self.url, session={"lock_timeout": "2s"}) as connection:
            while True:
                await asyncio.sleep(self.plan.retain)
                with contextlib.suppress(Busy):
                    async with holding(connection):
                        async for step in Retention(connection, periods).steps():
                            self.happened.emptied += step.act == "empty"
                            self.happened.dropped += step.act == "drop"
                            self.happened.waited += step.act == "wait" and step.days is None

    async def watch(self) -> None:
        """Look at everything that could grow."""
        while True:
            await asyncio.sleep(self.plan.sample)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """One sample of everything."""
        at = time.monotonic() - self.began
        with psycopg.connect(self.url, autocommit=True) as connection:
            for name, size in connection.execute(SIZES).fetchall():
                self.seen[f"{name}, MB"].append((at, size / 2**20))
            [(log, sessions, leaves)] = connection.execute(SERVER).fetchall()
        self.seen["PostgreSQL's log, MB"].append((at, log / 2**20))
        self.seen["PostgreSQL's sessions"].append((at, sessions))
        self.seen["partitions of the outbox"].append((at, leaves))
        for name, pid in self._programs():
            with contextlib.suppress(psutil.Error):
                memory, files = _used(pid)
                self.seen[f"{name}, MB of memory"].append((at, memory / 2**20))
                self.seen[f"{name}, files open"].append((at, files))

    async def settled(self, patience: float) -> tuple[int, int, int]:
        """Wait until nothing is under way: what is left (without a fate, open, dead)."""
        deadline = time.monotonic() + patience
        while True:
            left = await asyncio.to_thread(self._left)
            if not any(left) or time.monotonic() > deadline:
                return left
            if left[2]:
                await self.replay()
            await asyncio.sleep(1.0)

    def audit(self) -> Mapping[str, object]:
        """What a full audit finds wrong."""
        with migrate.connection(self.settings) as connection:
            report = audit(
                connection, self.settings, configured(self.settings), full=True, grace=0.0, age=0.0
            )
            connection.commit()
        return dict(report.wrong)

    def effects(self) -> int:
        """How many messages have been persisted, each once: the table's key allows no second."""
        with psycopg.connect(self.url) as connection:
            [(count,)] = connection.execute("SELECT count(*) FROM chat_histories").fetchall()
        return int(count)

    async def _set(self, what: LiteralString, value: bool) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(f"UPDATE trouble SET {what} = %s", [value])

    def _replay(self) -> int:
        with psycopg.connect(self.url) as asking:
            [(innocent,)] = asking.execute(INNOCENT).fetchall()
        self.happened.innocent += innocent
        engine, choice = sync_engine(self.url), operate.Choice()
        with engine.connect() as connection:
            ids = operate.plan(connection, choice)
            # One that died again since its worker was killed while nothing was broken, too.
            done = list(operate.replay(connection, ids, OPERATOR, choice, force=True))
        engine.dispose()
        return len(ids) if done else 0

    def _left(self) -> tuple[int, int, int]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            [(unbegun, opened, dead)] = connection.execute(LEFT).fetchall()
        return unbegun, opened, dead

    def _programs(self) -> Iterator[tuple[str, int]]:
        programs: list[tuple[str, int | None]] = [
            *((name, process.pid) for name, process in list(self.processes.items())),
            ("PostgreSQL", self.bench.postgres.pid),
            ("this program", os.getpid()),
        ]
        for name, pid in programs:
            if pid is not None:
                yield name, pid


def _used(pid: int) -> tuple[float, float]:
    """Bytes of memory that a program and its children have for themselves, and open files."""
    program, memory, files = psutil.Process(pid), 0.0, 0.0
    children = [] if pid == os.getpid() else program.children(recursive=True)
    for each in (program, *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            memory += each.memory_full_info().uss
            files += each.num_fds()
    return memory, files


async def soak(bench: Bench, plan: Plan) -> Soak:
    """All of it on these servers; RuntimeError when anything was lost, or is wrong."""
    database(bench, NAME)
    environ = bench.environ(NAME, NAME) | {
        "STREAMS_TOPIC__RETENTION_HOURS": "1",
        "STREAMS_OUTBOX__PARTITION_ROWS": str(plan.width),
        "STREAMS_OUTBOX__PARTITIONS_AHEAD_DAYS": str(20 * plan.width / plan.rate / 86_400),
    }
    settings = settings_of(environ=environ)
    registry = configured(settings)
    list(migrate.migrate(settings, registry))
    kafka.prepare_topics(settings, registry.topics)
    engine = sync_engine(settings.database_url)
    with engine.begin() as first:
        partitions.ensure_sync(first, ahead=20 * plan.width, width=plan.width)
        first.exec_driver_sql(TROUBLE)
    engine.dispose()
    run = Soak(bench, plan, settings, environ)
    for name in ("worker.1", "worker.2", "relay"):
        run.start(name)
    try:
        await _meanwhile(run)
        left = await run.settled(60 + plan.seconds / 10)
        wrong = await asyncio.to_thread(run.audit)
    finally:
        for name in list(run.processes):
            await run.end(name)
    effects = run.effects()
    if any(left) or wrong or run.happened.innocent or effects != run.happened.enqueued:
        raise RuntimeError(
            f"{run.happened.enqueued} messages, {effects} effects; without a fate, open, dead:"
            f" {left}; {run.happened.innocent} died for nothing; the audit finds {wrong}"
        )
    return run


async def _meanwhile(run: Soak) -> None:
    """Everything at once, until the last message is enqueued."""
    payload(0)  # the first one makes all texts
    run.began = time.monotonic()
    beside = (run.trouble, run.mend, run.kill, run.backup, run.retain, run.watch)
    async with TaskGroup() as all_:
        tasks = [all_.create_task(each()) for each in beside]
        async with TaskGroup() as writers:
            for writer in range(WRITERS):
                writers.create_task(run.enqueue(writer))
        for task in tasks:
            task.cancel()
    await run.mended()


def quarters(samples: Sequence[tuple[float, float]], seconds: float) -> tuple[float, float, float]:
    """The means of the second and of the last quarter, and the last by the second."""
    second, last = (
        mean([value for at, value in samples if begin <= at / seconds < end] or [math.nan])
        for begin, end in ((0.25, 0.5), (0.75, 1.1))
    )
    return second, last, last / second if second else math.nan


def report(run: Soak) -> None:
    """What happened, and what grew."""
    happened, plan = run.happened, run.plan
    console.print(
        f"{happened.enqueued:,} messages in {plan.seconds:,.0f} s"
        f" ({happened.enqueued / plan.seconds:,.0f}/s of {plan.rate:,}), {happened.replayed:,}"
        f" replayed, {happened.kills} processes killed, {happened.backups} backups,"
        f" {happened.emptied} ranges emptied, {happened.dropped} dropped, waited {happened.waited}"
        " times; every effect is there once, and the audit finds nothing wrong"
    )
    table = Table(title=f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}", width=110)
    for column in ("watched", "least", "second quarter", "last quarter", "most", "last by second"):
        table.add_column(column, justify="left" if column == "watched" else "right")
    for name, samples in sorted(run.seen.items()):
        values = [value for _, value in samples]
        second, last, ratio = quarters(samples, plan.seconds)
        if max(values) < 0.1:  # MB: an empty table
            continue
        shown = (f"{value:,.1f}" for value in (min(values), second, last, max(values)))
        table.add_row(name, *shown, f"{ratio:.2f}")
    console.print(table, width=110)


def plot(run: Soak, file: Path) -> None:
    """What was watched over time, one small picture each, each from 0 to its most."""
    wide, high, across = 300, 70, 3
    shown = [
        (name, samples)
        for name, samples in sorted(run.seen.items())
        if max(value for _, value in samples) >= 1
    ]
    rows = math.ceil(len(shown) / across)
    size = f"{across * wide} {rows * (high + 40)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/><g font-family="sans-serif">',
    ]
    for number, (name, samples) in enumerate(shown):
        x, y = number % across * wide + 10, number // across * (high + 40) + 25
        most = max(value for _, value in samples)
        points = " ".join(
            f"{x + at / run.plan.seconds * (wide - 25):.1f},{y + high - value / most * high:.1f}"
            for at, value in samples
        )
        parts.append(
            f'<text x="{x}" y="{y - 8}">{name}: {most:,.0f} at most</text>'
            f'<path d="M{x} {y + high}h{wide - 25}" stroke="#999"/>'
            f'<polyline points="{points}" fill="none" stroke="#0a6" stroke-width="1.3"/>'
        )
    file.write_text("".join([*parts, "</g></svg>\n"]))


async def main(plan: Plan, picture: Path | None) -> None:
    """On servers of its own."""
    async with on_servers(0) as bench:
        run = await soak(bench, plan)
    report(run)
    if picture is not None:
        plot(run, picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rate", type=int, default=2000, help="messages a second")
    parser.add_argument("--width", type=int, default=100_000, help="ids of a partition")
    parser.add_argument("--keep", type=float, default=600, help="seconds that messages stay")
    parser.add_argument(
        "--every", type=float, default=1.0, help="all that happens, so much oftener"
    )
    parser.add_argument("--plot", type=Path, help="an SVG of what was watched")
    chosen = parser.parse_args()
    times = Plan(chosen.seconds, chosen.rate, chosen.width, chosen.keep)
    asyncio.run(
        main(
            Plan(
                *(chosen.seconds, chosen.rate, chosen.width, chosen.keep),
                mend=times.mend / chosen.every,
                kill=times.kill / chosen.every,
                backup=times.backup / chosen.every,
                retain=times.retain / chosen.every,
                sample=times.sample / chosen.every,
            ),
            chosen.plot,
        )
    )
