"""Fetching from the consumer's thread, where aiokafka lives: how long the broker waits, and a fetch that its waiter gave up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from faust.transport.drivers import aiokafka as driver
from faust.types import TP


class FetchingConsumer(driver.Consumer):
    """Faust's consumer, with what it does not say of its thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fetch: asyncio.Future[Any] | None = None  # under way, or abandoned

    def in_touch(self) -> bool:
        """Whether Kafka has answered this member of the group within its session's timeout: only then can it commit."""
        consumer = self._thread._consumer
        if consumer is None or consumer._coordinator.coordinator_id is None:
            return False
        # Where packets vanish a request waits for its time limit, which is longer, and the coordinator is not given up.
        heard = max((one._last_action for one in list(consumer._client._conns.values())), default=0.0)
        return time.monotonic() - heard < float(self.app.conf.broker_session_timeout)

    def end_of(self, tp: TP) -> int:
        """The end of the partition's log, as the last fetch saw it; 0 while there was none."""
        try:
            return self.highwater(tp) or 0
        except AssertionError:  # taken away in this moment, in the consumer's thread
            return 0

    def set_broker_wait(self, seconds: float) -> None:
        """How long the broker may keep a request for partitions that have nothing.

        aiokafka has one request a broker under way.  While some partitions have records that nobody took yet, it asks for the
        others only; if those are empty, everything waits for that answer: 1.5 seconds, if Faust had its way.
        """
        if (consumer := self._thread._consumer) is not None:
            consumer._fetcher._fetch_max_wait_ms = round(1000 * seconds)

    async def end_abandoned_fetch(self) -> bool:
        """Whether such a fetch took something, perhaps after the partitions were positioned anew."""
        if self._fetch is None:
            return False
        await asyncio.wait([self._fetch])
        ended, self._fetch = self._fetch, None
        return not ended.cancelled() and ended.exception() is None and bool(ended.result())

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's own signature
        # A rebalance cancels who waits for a fetch; the fetch goes on in the consumer's thread, and takes what comes.
        self._fetch = asyncio.ensure_future(super()._getmany(active_partitions, timeout))
        found = await asyncio.shield(self._fetch)
        self._fetch = None
        return found
