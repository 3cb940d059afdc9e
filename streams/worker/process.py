"""The process around the Faust app.

It reports as `log` in faust.yml says, not in Faust's own way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import faust

from streams import log, telemetry
from streams.settings import Log
from streams.worker.memory import return_large_buffers, spare_the_collector

logger = logging.getLogger("streams.worker")


GOODBYE = 4.5  # seconds between being told to stop and ending, whatever is still waited for


class WorkerProcess(faust.Worker):
    """What `faust ... worker` starts, after `check`.

    Faust's `-l`, its log format and its spinner have no effect.
    """

    def __init__(
        self,
        *args: Any,
        reports: Log,
        check: Callable[[], None],
        leave: Callable[[], Awaitable[None]] | None = None,
        beside: Callable[[], Awaitable[None]] | None = None,
        goodbye: Callable[[], Awaitable[None]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._leave, self._beside, self._goodbye = leave, beside, goodbye
        self._leaving: asyncio.Future[None] | None = None
        self._reports = reports
        self.spinner = None
        log.setup(reports, debug=self.debug)
        return_large_buffers()
        check()

    def on_setup_root_logger(self, root: logging.Logger, level: int) -> None:
        """Faust has just set its own logging up."""
        log.setup(self._reports, debug=self.debug)

    def _schedule_shutdown(self, told: signal.Signals) -> None:
        """End in order, or without Kafka's goodbye.

        Its client may wait for that a minute and more when Kafka is silent.
        """
        if not self._signal_stop_time:
            backstop = threading.Timer(GOODBYE, _leave)
            backstop.daemon = True
            backstop.start()
            if self._leave is not None:
                # At once: whatever is still worked when the backstop ends the process has killed
                # nobody.
                self._leaving = asyncio.ensure_future(self._leave(), loop=self.loop)
        super()._schedule_shutdown(told)

    async def on_start(self) -> None:
        """Begin what goes on beside the app, before it recovers its tables.

        Recovery may take minutes.
        """
        await super().on_start()
        if self._beside is not None:
            self.add_future(self._beside())

    async def on_startup_finished(self) -> None:
        """Say once that it works, and where its pages are."""
        await super().on_startup_finished()
        spare_the_collector()
        conf = self.app.conf
        logger.info(
            "worker starts",
            extra={"group": conf.id, "web": str(conf.canonical_url), "pid": os.getpid()},
        )

    async def on_shutdown(self) -> None:
        """Say that it ends as told."""
        await super().on_shutdown()
        if self._goodbye is not None:
            await self._goodbye()
        await asyncio.to_thread(telemetry.close)
        if self.crash_reason is None:
            logger.info("worker stopped", extra={"group": self.app.conf.id, "pid": os.getpid()})


def _leave() -> None:
    """What is not committed is delivered again, to whoever has the partition then."""
    logger.warning(
        "worker stopped without waiting any longer", extra={"seconds": GOODBYE, "pid": os.getpid()}
    )
    logging.shutdown()
    os._exit(0)
