"""What a worker does with its runs: one transaction each or several together, on its pool."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

import orjson
import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from streams.database import query
from streams.envelope import DELETED
from streams.registry import Registry
from streams.settings import Settings
from streams.worker.database.connections import TransactionFailed, commit, driver_of, is_lost
from streams.worker.database.database import REACH, Database
from streams.worker.database.response_deadline import response_deadline
from streams.worker.delivery import UNKNOWN
from streams.worker.driver.dispatcher import Slots
from streams.worker.driver.runs import Run
from streams.worker.failure.classify import (
    HandlerBroken,
    HandlerMisuse,
    HandlerTimeout,
    MessageExhausted,
    WrongTimes,
    jittered,
    server_words,
)
from streams.worker.failure.strategy import Strategy
from streams.worker.run.attempt import Attempt, Attempts, Outcome
from streams.worker.run.conversations import head_of, work_conversations
from streams.worker.run.crashes import CrashNotes
from streams.worker.run.exclusion import Exclusion
from streams.worker.run.origin import Origin
from streams.worker.run.pipeline import work_run
from streams.worker.run.suspects import Suspects, Trial
from streams.worker.run.until_done import Work, about_run, until_done
from streams.worker.run.waits import Waits
from streams.worker.set_aside import SetAside

logger = logging.getLogger(__name__)

MOST_WAIT = 10.0  # seconds between two tries of a run while the database is away
SLOW_TRIES = 3


class Persister:
    """Persists runs, one transaction each or several together."""

    slow_tries = SLOW_TRIES

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.registry = registry
        self.slots = Slots(settings.worker.transactions)
        self.most = settings.worker.run_records
        self.database = Database(settings)
        self.suspects = Suspects(
            CrashNotes(self.database), Exclusion(self.slots), self.most, settings.worker.run_bytes
        )
        self.attempts = Attempts(settings, registry)
        self.waits = Waits()

    def origin(self, topic: str) -> Origin:
        """Whose messages a topic carries."""
        return self.attempts.origin(topic)

    async def together(self, runs: Sequence[Run]) -> Outcome | None:
        """One try at these runs in one transaction.

        None when it failed and they have to be worked one by one.
        """
        # A run of an earlier owner may be behind one that was given up: what it holds would
        # overtake that.
        if not all(run.current for run in runs):
            return None
        topic = runs[0].topic
        try:
            return await self._once(runs, topic, _records(runs), self.attempts.strategy(topic))
        except TransactionFailed as failed:
            logger.debug("runs are worked one by one", extra=about_run(runs[0], failed.error))
            return None

    def persist(
        self, run: Run, strategy: Strategy = Strategy.WHOLE
    ) -> Coroutine[Any, Any, Outcome | None]:
        """What was decided for each record, after the commit.

        None when the run stopped being ours before that.
        """
        strategy = max(strategy, self.attempts.strategy(run.topic))
        return self._until_done(run, run.topic, _records([run]), strategy)

    def retry(
        self,
        run: Run,
        topic: str,
        keys: Sequence[str],
        strategy: Strategy = Strategy.WHOLE,
        most: int | None = None,
    ) -> Coroutine[Any, Any, Outcome | None]:
        """Work what is due of these conversations of the topic.

        Their wake-up calls came in the run. What failed before is likely to fail again: in pieces
        from the start.
        """
        work = partial(
            work_conversations, partition=run.partition, keys=keys, most=most or self.most
        )
        return self._until_done(run, topic, work, max(strategy, Strategy.BISECT))

    async def heads(self, topic: str, keys: Sequence[str]) -> list[SetAside]:
        """The open message that each of these conversations waits for.

        A conversation that waits for nothing has None.
        """
        return await self._heads(
            topic, await self._ask("heads", topic, keys=orjson.dumps(list(keys)).decode())
        )

    async def all_heads(self, topic: str, partitions: Sequence[int]) -> list[SetAside]:
        """The open message that each conversation of these partitions waits for."""
        return await self._heads(
            topic, await self._ask("all_heads", topic, partitions=list(partitions))
        )

    async def still_dead(self, topic: str, ids: Sequence[int]) -> set[int]:
        """Which of these messages of the topic are dead."""
        return {row[0] for row in await self._ask("still_dead", topic, ids=list(ids))}

    async def dead_letters(
        self, topic: str, partitions: Sequence[int], most: int
    ) -> list[SetAside]:
        """The newest dead letters of these partitions."""
        rows = await self._ask("newest_dead", topic, partitions=list(partitions), most=most)
        return [
            SetAside(outbox_id, key, partition, "dead", attempts, code)
            for key, partition, outbox_id, attempts, code in rows
        ]

    async def note_deleted(self, run: Run) -> bool:
        """What Kafka deleted before this run unread, where only its producer has it.

        Our own messages are in the outbox: the sweep sends them again. False when the run stopped
        being ours.
        """
        if run.deleted is None or self.origin(run.topic).has_rows:
            return True
        first, end = run.deleted
        where = {"topic": run.topic, "partition": run.partition}
        given = {**where, "first": first, "end": end, "reason": DELETED}
        written: list[tuple[Any, ...]] = []

        async def note() -> None:
            written[:] = (await self.database.tell([(query("note_deleted"), given)]))[0]

        noted = await self.insist(run, note)
        if noted:
            run.deleted = None
        for offset, count in written:
            logger.error(
                "Kafka deleted records before they were read, only their producer has them",
                extra={**where, "offset": offset, "count": count},
            )
        return noted

    async def insist(self, run: Run, act: Callable[[], Awaitable[Any]]) -> bool:
        """Do something small in the database, whenever it lets us.

        False when the run stopped being ours before that.
        """
        tries = 0
        while run.current:
            try:
                await act()
            except (psycopg.Error, DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
                tries += 1
                await self.wait(run, error, tries)
            else:
                return True
        return False

    async def wait(self, run: Run, error: Exception, tries: int) -> None:
        """Wait out an outage that was met so many `tries`, and say so now and then."""
        about = about_run(run, error.__cause__ or error)
        state = about.get("sqlstate")
        in_words = f"{error}" if isinstance(error, HandlerBroken | WrongTimes) else about["error"]
        self.waits.note(run, in_words, state)
        if tries in (1, 10) or tries % 60 == 0 or state != run.reason:
            run.reason = state
            text = "database unavailable, run waits"
            level = logging.WARNING
            if isinstance(error, HandlerBroken):
                text, level = (
                    f"{error}: a bug or a missing column, the run waits until it is mended",
                    logging.ERROR,
                )
            elif isinstance(error, WrongTimes):
                text, level = f"{error}: the run waits until it is mended", logging.ERROR
            words = server_words(error)
            logger.log(
                level, text, extra={**about, "tries": tries} | ({"reason": words} if words else {})
            )
        if state == psycopg.errors.LockNotAvailable.sqlstate:
            with suppress(psycopg.Error, SQLAlchemyError, OSError):
                await self.database.end_vanished()
        await self.rest(jittered(min(MOST_WAIT, 0.1 * 2 ** min(tries, 8))))

    async def rest(self, seconds: float) -> None:
        """Pause, and hold up nothing but this run's partition meanwhile."""
        await self.slots.rest(seconds)

    async def reachable(self) -> bool:
        """Whether the database answers others."""
        return await self.database.reachable()

    def _until_done(
        self, run: Run, topic: str, work: Work, strategy: Strategy
    ) -> Coroutine[Any, Any, Outcome | None]:
        attempt = partial(self._once, [run], topic, work)
        return until_done(run, attempt, strategy, self.attempts.history(topic), self)

    async def _once(
        self, runs: Sequence[Run], topic: str, work: Work, strategy: Strategy
    ) -> Outcome:
        """One transaction, beside those of others or not, as far as the run is suspect.

        TransactionFailed when it did not commit, or when nobody knows.
        """
        trial: Trial | None = runs[0].trial
        async with self.suspects.exclusion.shared() if trial is None else trial.permitted():
            with _progressing(runs) as progressed:
                async with self._transaction(topic, strategy, progressed, trial) as attempt:
                    return await work(attempt)

    @asynccontextmanager
    async def _transaction(
        self, topic: str, strategy: Strategy, progressed: Callable[[], None], trial: Trial | None
    ) -> AsyncIterator[Attempt]:
        """An attempt, committed at the end of the block."""
        lost, at_commit, seconds = True, False, self.database.patience
        try:
            async with self.database.engine.connect() as connection:
                lost = False
                driver = await driver_of(connection)
                attempt = self.attempts.begin(
                    connection,
                    driver,
                    topic,
                    strategy,
                    seconds=seconds,
                    progressed=progressed,
                    trial=trial,
                )
                try:
                    async with attempt.spans:
                        begun = await connection.begin()
                        try:
                            yield attempt
                            await attempt.settle()
                            at_commit = True
                            with response_deadline(driver, seconds):
                                await commit(driver)
                        except (
                            BaseException
                        ) as error:  # cancelled too: the partition's lock is not kept
                            # What took the connection with it counts, not that it is gone.
                            takes_it = isinstance(
                                error, MessageExhausted | HandlerTimeout | HandlerMisuse
                            )
                            with (
                                suppress(*([Exception] if takes_it else [])),
                                response_deadline(driver, REACH),
                            ):
                                await begun.rollback()
                            raise
                except (
                    Exception
                ):  # raised again: only now is it known whether the connection survived
                    lost = is_lost(connection, driver)
                    if lost:  # the pool may have lost hold of it, with a partition's lock
                        await driver.close()
                    raise
                finally:
                    if attempt.caller.spoiled and not is_lost(connection, driver):
                        await connection.invalidate()
        except Exception as error:
            raise TransactionFailed(error, lost, at_commit=at_commit) from error

    async def _heads(self, topic: str, rows: Sequence[tuple[Any, ...]]) -> list[SetAside]:
        unknown = [row[2] for row in rows if row[5] == UNKNOWN]
        awaited: set[int] = set()
        for start in range(0, len(unknown), self.most):
            kinds = await self._ask("biz_types_of", topic, ids=unknown[start : start + self.most])
            awaited |= {
                outbox_id for outbox_id, biz_type in kinds if biz_type in self.registry.agents
            }
        return [head_of(row, awaited) for row in rows]

    async def _ask(self, name: str, topic: str, **parameters: Any) -> list[tuple[Any, ...]]:
        origin = self.origin(topic)
        return await self.database.read(
            origin.statement(name), {"topic": topic, "source": origin.source, **parameters}
        )


def _records(runs: Sequence[Run]) -> Work:
    """The pipeline of these runs' records."""
    partitions, records = (
        {run.partition for run in runs},
        list(chain.from_iterable(run.records for run in runs)),
    )
    return partial(work_run, partitions=partitions, records=records)


@contextmanager
def _progressing(runs: Sequence[Run]) -> Iterator[Callable[[], None]]:
    """An attempt at these runs is under way within this.

    What is yielded is called when something of it has ended.
    """

    def progressed() -> None:
        now = time.monotonic()
        for run in runs:
            run.progressed = now

    progressed()
    try:
        yield progressed
    finally:
        for run in runs:
            run.progressed = None
