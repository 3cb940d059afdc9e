"""One process that is started again whenever it ends.

Ending is how a fail-stop worker asks for that.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from streams.dev.process import Process, until
from streams.dev.procfile import Program
from streams.dev.workplace import Running, Workplace
from streams.groups import TaskGroup

LONGEST = 10.0
# Whoever lived this long has started well: its next end is a first one again.
STABLE = 30.0
GRACE = 10.0

Say = Callable[[str], None]


def delay(failure: int) -> float:
    """Seconds to wait before the start that follows the given failure in a row (1 is the first)."""
    return min(LONGEST, 0.5 * 2.0 ** (failure - 1))


class Supervised:
    """A program of the Procfile; `say` hears of its ends, `changed` is called after every start."""

    def __init__(
        self,
        program: Program,
        workplace: Workplace,
        environ: Mapping[str, str],
        say: Say,
        changed: Callable[[], None],
    ) -> None:
        self.program = program
        self.log = workplace.log(program.name)
        self._process = Process(
            program.command, self.log, environ={**environ, **program.environ}, cwd=workplace.folder
        )
        self._say = say
        self._changed = changed
        self._born = math.inf
        self._renewed = False

    @property
    def running(self) -> Running:
        """Its line in the note."""
        web = f"http://127.0.0.1:{self.program.web}/" if self.program.web else None
        return Running(self.program.name, self._process.pid, web)

    @property
    def age(self) -> float:
        """Seconds since its last start; negative before the first."""
        return time.monotonic() - self._born

    async def run(self) -> None:
        """Keep it running until cancelled; then SIGTERM, and SIGKILL after GRACE seconds."""
        failures = 0
        try:
            while True:
                self._process.launch()
                self._born = time.monotonic()
                self._changed()
                await until(lambda: not self._process.running or self._renewed, math.inf, pause=0.1)
                if self._renewed:
                    await self._process.stop(signal.SIGTERM, GRACE)
                    failures, self._renewed = 0, False
                    continue
                failures = 1 if self.age > STABLE else failures + 1
                self._say(self._obituary(delay(failures)))
                await until(lambda: self._renewed, delay(failures), pause=0.1)
                self._renewed = False
        finally:
            await self._process.stop(signal.SIGTERM, GRACE)

    def renew(self, environ: Mapping[str, str] | None = None) -> None:
        """Start it again, as soon as it has ended in order: what it runs has changed.

        `environ` is what it is given from then on, if that has changed too.
        """
        if environ is not None:
            self._process.environ = {**environ, **self.program.environ}
        self._renewed = True

    def kill(self) -> None:
        """End it now, without asking."""
        self._process.kill()

    def _obituary(self, pause: float) -> str:
        status = self._process.returncode or 0
        how = (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )
        words = self._process.last_words(1)[:200]
        return (
            f"{self.program.name} {how}, starts again in {pause:g} s (log:"
            f" {self.log}){': ' if words else ''}{words}"
        )


@asynccontextmanager
async def kept_running(programs: Sequence[Supervised]) -> AsyncIterator[None]:
    """They run inside the block; leaving it stops them all at once and waits for them."""
    async with TaskGroup() as group:
        tasks = [group.create_task(program.run()) for program in programs]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
