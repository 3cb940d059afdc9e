"""A run until it is persisted: outages are waited out, failing messages set aside, stale runs given up.

An outage is not an error of the message: nothing is counted and the same run is tried again, until it is done or a rebalance
gives its partition away.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any

import orjson
import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from streams.registry import Registry
from streams.settings import Settings
from streams.worker.database.connections import TransactionFailed, commit, driver_of, is_lost
from streams.worker.database.database import REACH, Database
from streams.worker.database.response_deadline import response_deadline
from streams.worker.driver.dispatcher import Slots
from streams.worker.driver.runs import Run
from streams.worker.failure.classify import (
    HandlerBroken,
    HandlerMisuse,
    HandlerTimeout,
    MessageExhausted,
    Verdict,
    WrongTimes,
    jittered,
    server_words,
    verdict_on,
    without_text,
)
from streams.worker.failure.handlers import Strategy
from streams.worker.failure.isolate import FailureHistory
from streams.worker.run.conversations import Head, work_open
from streams.worker.run.crashes import CrashNotes
from streams.worker.run.exclusion import Displaced, Exclusion
from streams.worker.run.foreign import Foreign
from streams.worker.run.origin import Origin, Outbox
from streams.worker.run.pipeline import work_records
from streams.worker.run.suspects import Isolated, Suspects, Trial, Unnoted
from streams.worker.run.transaction import Aside, NotYetVisible, Outcome, Transaction

logger = logging.getLogger(__name__)

MOST_WAIT = 10.0  # seconds between two tries of a run while the database is away
COSTLY_TRIES = 3
LOST_TRIES = 3  # connections that a run may lose while the database answers others

Work = Callable[[Transaction], Awaitable[None]]


class Persister:
    """Persists runs, one transaction each or several together."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.registry = registry
        self.slots = Slots(settings.worker.transactions)
        self.most, self._unknown_days = settings.worker.run_records, settings.worker.unknown_days
        self.database = Database(settings)
        self.suspects = Suspects(CrashNotes(self.database), Exclusion(self.slots), self.most, settings.worker.run_bytes)
        self._ours = Outbox(registry)
        self._foreign = {topic: Foreign(registry, source) for topic, source in registry.envelopes.items()}
        self._memories: defaultdict[str, FailureHistory] = defaultdict(FailureHistory)

    def origin(self, topic: str) -> Origin:
        """Whose messages a topic carries."""
        return self._foreign.get(topic, self._ours)

    async def together(self, runs: Sequence[Run]) -> Outcome | None:
        """One try at these runs in one transaction; None when it failed and they have to be worked one by one."""
        # A run of an earlier owner may be behind one that was given up: what it holds would overtake that.
        if not all(run.current for run in runs):
            return None
        try:
            with _progressing(runs) as progressed:
                async with self.suspects.exclusion.shared():
                    return await self._once(runs[0].topic, self._records(runs), self._care(runs[0].topic), progressed)
        except TransactionFailed as failed:
            logger.debug("runs are worked one by one", extra=_about(runs[0], failed.error))
            return None

    async def persist(self, run: Run, care: Strategy = Strategy.WHOLE) -> Outcome | None:
        """What was decided for each record, after the commit; None when the run stopped being ours before that."""
        return await self._until_done(run, run.topic, self._records([run]), max(care, self._care(run.topic)))

    async def retry(
        self, run: Run, topic: str, keys: Sequence[str], care: Strategy = Strategy.WHOLE, most: int | None = None
    ) -> Outcome | None:
        """Work what is due of these conversations of the topic, whose wake-up calls came in the run.

        What failed before is likely to fail again: in pieces from the start.
        """

        async def work(transaction: Transaction) -> None:
            await work_open(transaction, topic, run.partition, keys, most or self.most)

        return await self._until_done(run, topic, work, max(care, Strategy.BISECT))

    async def heads(self, topic: str, keys: Sequence[str]) -> list[Head]:
        """The open message that each of these conversations waits for; none for one that waits for nothing."""
        rows = await self._ask("heads", topic, keys=orjson.dumps(list(keys)).decode())
        return [Head.of(row, self.registry.agents) for row in rows]

    async def all_heads(self, topic: str, partitions: Sequence[int]) -> list[Head]:
        """The same for every conversation of these partitions."""
        rows = await self._ask("all_heads", topic, partitions=list(partitions))
        return [Head.of(row, self.registry.agents) for row in rows]

    async def still_dead(self, topic: str, ids: Sequence[int]) -> set[int]:
        """Which of these messages of the topic are dead."""
        return {row[0] for row in await self._ask("still_dead", topic, ids=list(ids))}

    async def dead_letters(self, topic: str, partitions: Sequence[int], most: int) -> list[Aside]:
        """The newest dead letters of these partitions."""
        rows = await self._ask("newest_dead", topic, partitions=list(partitions), most=most)
        return [Aside(one, partition, key, "dead", attempts, code) for key, partition, one, attempts, code in rows]

    async def insist(self, run: Run, act: Callable[[], Awaitable[Any]]) -> bool:
        """Do something small in the database, whenever it lets us; False when the run stopped being ours before that."""
        tries = 0
        while run.current:
            try:
                await act()
            except (psycopg.Error, DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
                tries += 1
                await self._wait(run, error, tries)
            else:
                return True
        return False

    @contextmanager
    def condemning(self, topic: str, messages: Sequence[int], error: Exception) -> Iterator[None]:
        """Within this, these messages of the topic fail with this error, without calling a handler."""
        known_failures = self._memories[self.origin(topic).source].known_failures
        known_failures.update(dict.fromkeys(messages, error))
        try:
            yield
        finally:
            for one in messages:
                known_failures.pop(one, None)

    def _records(self, runs: Sequence[Run]) -> Work:
        async def work(transaction: Transaction) -> None:
            # Anew in each try: deciding fills messages in from outbox rows.
            found, rejected = transaction.origin.read(chain.from_iterable(run.records for run in runs))
            await work_records(transaction, found, rejected, {run.partition for run in runs})

        return work

    async def _until_done(self, run: Run, topic: str, work: Work, care: Strategy) -> Outcome | None:
        with ExitStack() as known_failures, _progressing([run]) as progressed:
            return await self._try_until_done(run, topic, work, care, known_failures, progressed)

    async def _try_until_done(
        self,
        run: Run,
        topic: str,
        work: Work,
        care: Strategy,
        known_failures: ExitStack,
        progressed: Callable[[], None],
    ) -> Outcome | None:
        tries = costly = unseen = lost_tries = 0
        searched = False
        while run.current:
            progressed()
            try:
                outcome = await self._attempt(run, topic, work, care, progressed)
            except TransactionFailed as failed:
                error, lost = failed.error, failed.lost
                if failed.at_commit and not lost and verdict_on(error, lost) is Verdict.ISOLATE:
                    # A deferred constraint: from now on each call is asked for what it left to be checked.
                    self._memories[self.origin(topic).source].deferred = True
            else:
                run.waiting = False
                return outcome
            if isinstance(error, Isolated):
                raise error
            if isinstance(error, Displaced):
                continue
            if isinstance(error, NotYetVisible):
                run.waiting = True
                unseen += 1
                if unseen == 10:
                    logger.warning("what others committed is not visible yet, the run waits", extra=_about(run, error))
                await self._rest(0.005 * 2 ** min(unseen, 8))
                continue
            alone = error if isinstance(error, MessageExhausted) else None
            error = alone.error if alone is not None else error
            verdict = verdict_on(error, lost) if alone is None else Verdict.SLOW
            if isinstance(error, Unnoted):
                verdict = Verdict.WAIT
            if (alone is not None or isinstance(error, HandlerTimeout)) and not await self.database.reachable():
                verdict = Verdict.WAIT
            run.waiting = verdict is Verdict.WAIT
            if verdict is Verdict.WAIT:
                tries, searched = tries + 1, False
                await self._wait(run, error, tries)
                # A database that answers others loses this one's connection again and again: a message may be behind it.
                lost_tries = lost_tries + 1 if lost and await self.database.reachable() else 0
                if lost_tries >= LOST_TRIES:
                    care = Strategy.SINGLE
            elif verdict is Verdict.SLOW:
                costly += 1
                if alone is not None:
                    # Until the run is done, not for one try: the next one may fail with another message like it.
                    known_failures.enter_context(self.condemning(topic, [alone.outbox_id], error))
                elif costly >= COSTLY_TRIES:
                    care = Strategy.SINGLE
                    await self._rest(jittered(0.1 * min(costly, 100)))
                logger.warning("a run takes too much time or memory", extra={**_about(run, error), "tries": costly})
            elif care is Strategy.WHOLE:
                care = Strategy.BISECT
                logger.info("a run failed, looking for the guilty message", extra=_about(run, error))
            elif not searched:
                searched = True  # once more: what no handler raised may have been a moment's trouble
                logger.warning("a run failed for an unexpected reason, once more", extra=_about(run, error))
            else:
                raise error
        return None

    async def _attempt(
        self, run: Run, topic: str, work: Work, care: Strategy, progressed: Callable[[], None]
    ) -> Outcome:
        """One transaction, beside those of others or not, as far as the run is suspect."""
        trial: Trial | None = run.trial
        run.progressed = None  # who waits to be let in does not stand still
        async with self.suspects.exclusion.shared() if trial is None else trial.permitted():
            progressed()
            return await self._once(topic, work, care, progressed, trial)

    async def _once(
        self, topic: str, work: Work, care: Strategy, progressed: Callable[[], None], trial: Trial | None = None
    ) -> Outcome:
        """One transaction; TransactionFailed when it did not commit, or when nobody knows."""
        lost, origin = True, self.origin(topic)
        at_commit = False
        try:
            async with self.database.engine.connect() as connection:
                lost = False
                driver = await driver_of(connection)
                transaction = Transaction(
                    connection,
                    driver,
                    self.registry,
                    topic,
                    care=care,
                    seconds=self.database.patience,
                    memory=self._memories[origin.source],
                    origin=origin,
                    unknown_days=self._unknown_days,
                    progressed=progressed,
                    trial=trial,
                )
                try:
                    async with transaction.spans:
                        begun = await connection.begin()
                        try:
                            await work(transaction)
                            await transaction.settle()
                            at_commit = True
                            with response_deadline(driver, self.database.patience):
                                await commit(driver)
                        except BaseException as error:  # cancelled too: the partition's lock is not kept
                            # What took the connection with it counts, not that it is gone.
                            ours = (
                                (Exception,)
                                if isinstance(error, MessageExhausted | HandlerTimeout | HandlerMisuse)
                                else ()
                            )
                            with suppress(*ours), response_deadline(driver, REACH):
                                await begun.rollback()
                            raise
                except Exception:  # raised again: only now is it known whether the connection survived
                    lost = is_lost(connection, driver)
                    if lost:  # the pool may have lost hold of it, with a partition's lock
                        await driver.close()
                    raise
                finally:
                    if transaction.spoiled and not is_lost(connection, driver):
                        await connection.invalidate()
        except Exception as error:
            raise TransactionFailed(error, lost, at_commit=at_commit) from error
        return transaction.outcome

    def _care(self, topic: str) -> Strategy:
        """Where messages failed others will: savepoints from the start, until they are so rare that whole runs are cheaper."""
        return Strategy.BISECT if self._memories[self.origin(topic).source].recently_failing(topic) else Strategy.WHOLE

    async def _ask(self, name: str, topic: str, **parameters: Any) -> list[tuple[Any, ...]]:
        origin = self.origin(topic)
        return await self.database.read(origin.statement(name), {"topic": topic, "source": origin.source, **parameters})

    async def _wait(self, run: Run, error: BaseException, tries: int) -> None:
        about = _about(run, error.__cause__ or error)
        state = about.get("sqlstate")
        if tries in (1, 10) or tries % 60 == 0 or state != run.reason:
            run.reason = state
            text = "the database cannot do it now, the run waits"
            level = logging.WARNING
            if isinstance(error, HandlerBroken):
                text, level = f"{error}: a bug or a missing column, the run waits until it is mended", logging.ERROR
            elif isinstance(error, WrongTimes):
                text, level = f"{error}: the run waits until it is mended", logging.ERROR
            words = server_words(error)
            logger.log(level, text, extra={**about, "tries": tries} | ({"reason": words} if words else {}))
        await self._rest(jittered(min(MOST_WAIT, 0.1 * 2 ** min(tries, 8))))

    async def _rest(self, seconds: float) -> None:
        """What waits holds up nothing but its own partitions."""
        await self.slots.rest(seconds)


@contextmanager
def _progressing(runs: Sequence[Run]) -> Iterator[Callable[[], None]]:
    """Within this an attempt at these runs is under way; what is yielded notes that something of it has ended."""

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


def _about(run: Run, error: BaseException) -> dict[str, Any]:
    return {
        "topic": run.topic,
        "partition": run.partition,
        "offset": run.first,
        "records": len(run),
        **without_text(error),
    }
