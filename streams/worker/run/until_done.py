"""A run until it is persisted: outages are waited out, failing messages set aside.

    attempt                  ends with          and then
    the run as a whole       23514              in pieces behind savepoints: the guilty message is
                                                set aside
    the run as a whole       57P01, an outage   a pause, and the same again; nothing is counted
    the run as a whole       a timeout          three times the same, then one message at a time
    one message at a time    a timeout          that message fails without a call; the others again
    the run in pieces        a KeyError of ours once more; then the process ends, by this run

An outage is not an error of the message: nothing is counted and the same run is tried again, until
it is done or a rebalance gives its partition away.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, Protocol

from streams.worker.database.connections import TransactionFailed
from streams.worker.driver.runs import Run
from streams.worker.failure.classify import (
    HandlerTimeout,
    MessageExhausted,
    Verdict,
    jittered,
    verdict_on,
    without_text,
)
from streams.worker.failure.history import FailureHistory
from streams.worker.failure.strategy import Strategy
from streams.worker.run.attempt import Attempt, Outcome
from streams.worker.run.exclusion import Displaced
from streams.worker.run.suspects import Isolated, TakenOver, Unnoted
from streams.worker.run.transaction import NotYetVisible

logger = logging.getLogger(__name__)

LOST_TRIES = 3  # connections that a run may lose while the database answers others
UNSEEN_TOLD = 10  # tries after which it is said that a row is not visible yet
SLOW = "a run takes too much time or memory"

Work = Callable[[Attempt], Awaitable[Outcome]]  # the pipeline of a run, or of what it wakes


class Patience(Protocol):
    """How whoever works a run waits between two attempts.

    `slow_tries` may take too long before messages are tried alone.
    """

    slow_tries: int

    async def wait(self, run: Run, error: Exception, tries: int) -> None:
        """Wait out an outage that was met so many `tries`."""

    async def rest(self, seconds: float) -> None:
        """Pause."""

    async def reachable(self) -> bool:
        """Whether the database answers others."""


async def until_done(
    run: Run,
    attempt: Callable[[Strategy], Awaitable[Outcome]],
    strategy: Strategy,
    history: FailureHistory,
    patience: Patience,
) -> Outcome | None:
    """Attempt a run until one attempt commits; None when the run stopped being ours before that."""
    tries: Counter[Verdict] = Counter()
    lost = 0  # connections in a row, while the database answers others
    once_more = False
    with ExitStack() as failing:
        while run.current:
            try:
                outcome = await attempt(strategy)
            except TransactionFailed as failed:
                failure = failed
            else:
                run.waiting = False
                return outcome
            verdict = await _verdict_on(failure, history, patience)
            error = (
                failure.error.error
                if isinstance(failure.error, MessageExhausted)
                else failure.error
            )
            tries[verdict] += 1
            slow = tries[Verdict.SLOW] + tries[Verdict.CHARGE]
            if verdict is not Verdict.DISPLACED:
                run.waiting = verdict in (Verdict.WAIT, Verdict.UNSEEN)
            match verdict:
                case Verdict.DISPLACED:
                    pass
                case Verdict.UNSEEN:
                    if tries[verdict] == UNSEEN_TOLD:
                        text = "what others committed is not visible yet, the run waits"
                        logger.warning(text, extra=about_run(run, error))
                    await patience.rest(0.005 * 2 ** min(tries[verdict], 8))
                case Verdict.WAIT:
                    once_more = False
                    await patience.wait(run, error, tries[verdict])
                    # A database that answers others loses this one's connection again and again: a
                    # message may be behind it.
                    lost = lost + 1 if failure.lost and await patience.reachable() else 0
                    if lost >= LOST_TRIES:
                        strategy = Strategy.SINGLE
                case Verdict.CHARGE:
                    assert isinstance(failure.error, MessageExhausted)
                    # Until the run is done, not for one try: the next one may fail with another
                    # message like it.
                    failing.enter_context(history.failing(failure.error.outbox_id, error))
                    logger.warning(SLOW, extra={**about_run(run, error), "tries": slow})
                case Verdict.SLOW:
                    if slow >= patience.slow_tries:
                        strategy = Strategy.SINGLE
                        await patience.rest(jittered(0.1 * min(slow, 100)))
                    logger.warning(SLOW, extra={**about_run(run, error), "tries": slow})
                case Verdict.ISOLATE if strategy is Strategy.WHOLE:
                    strategy = Strategy.BISECT
                    logger.info(
                        "a run failed, looking for the guilty message", extra=about_run(run, error)
                    )
                case Verdict.ISOLATE if not once_more:
                    once_more = True  # what no handler raised may have been a moment's trouble
                    logger.warning(
                        "a run failed for an unexpected reason, once more",
                        extra=about_run(run, error),
                    )
                case _:
                    raise error
    return None


async def _verdict_on(
    failure: TransactionFailed, history: FailureHistory, patience: Patience
) -> Verdict:
    """What to do after an attempt that failed so.

    A deferred constraint that failed at the commit is remembered.
    """
    match failure.error:
        case Isolated():
            return Verdict.STOP
        case Displaced() | TakenOver():
            return Verdict.DISPLACED
        case NotYetVisible():
            return Verdict.UNSEEN
        case Unnoted():
            return Verdict.WAIT
        case MessageExhausted() | HandlerTimeout() if not await patience.reachable():
            return Verdict.WAIT
        case MessageExhausted():
            return Verdict.CHARGE
    verdict = verdict_on(failure.error, failure.lost)
    if failure.at_commit and not failure.lost and verdict is Verdict.ISOLATE:
        # From now on each call is asked for what it left to be checked.
        history.deferred = True
    return verdict


def about_run(run: Run, error: BaseException) -> dict[str, Any]:
    return {
        "topic": run.topic,
        "partition": run.partition,
        "offset": run.first,
        "records": len(run),
        **without_text(error),
    }
