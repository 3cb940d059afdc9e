"""The process around the Faust app: it reports as `log` in faust.yml says, not in Faust's own way."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import faust

from streams import log, telemetry
from streams.settings import Log
from streams.worker.memory import return_large_buffers, spare_the_collector

logger = logging.getLogger("streams.worker")


class WorkerProcess(faust.Worker):
    """What `faust ... worker` starts, after `check`; Faust's `-l`, its log format and its spinner have no effect."""

    def __init__(self, *args: Any, reports: Log, check: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._reports = reports
        self.spinner = None
        log.setup(reports, debug=self.debug)
        return_large_buffers()
        check()

    def on_setup_root_logger(self, root: logging.Logger, level: int) -> None:
        """Faust has just set its own logging up."""
        log.setup(self._reports, debug=self.debug)

    async def on_startup_finished(self) -> None:
        """Say once that it works, and where its pages are."""
        await super().on_startup_finished()
        spare_the_collector()
        conf = self.app.conf
        logger.info("worker starts", extra={"group": conf.id, "web": str(conf.canonical_url), "pid": os.getpid()})

    async def on_shutdown(self) -> None:
        """Say that it ends as told."""
        await super().on_shutdown()
        await asyncio.to_thread(telemetry.close)
        if self.crash_reason is None:
            logger.info("worker stopped", extra={"group": self.app.conf.id, "pid": os.getpid()})
