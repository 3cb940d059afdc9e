"""What `streams up` shows: lines as things happen and, on a terminal, one live line below them."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from streams.dev.counters import Counts
from streams.dev.downloads import Progress
from streams.terminal import printable_lines

# Without a terminal a line every so many seconds tells enough.
DOWNLOAD_SECONDS = 2.0
COUNTS_SECONDS = 10.0


class Screen:
    """Lines and a live line; without a terminal the live line becomes an occasional plain one."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._busy: Spinner | None = None
        self._counts: Text | None = None
        self._told = 0.0
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def line(self, text: str) -> None:
        """Say something once."""
        self._console.print(Text(printable_lines(text)))

    def download(self, progress: Progress) -> None:
        """Show how far a download is; comes from another thread."""
        self._show(f"downloading {describe(progress)}", DOWNLOAD_SECONDS)

    def busy(self, text: str | None) -> None:
        """Show what is being waited for; None when nothing is."""
        self._busy = Spinner("dots", Text(text)) if text else None

    def counts(self, counts: Counts, rolled_back: int) -> None:
        """Show how the demo goes."""
        text = (
            f"enqueued {counts.committed:,}   rolled back {rolled_back:,}   relayed"
            f" {counts.relayed:,}   "
            f"persisted {counts.persisted:,}   lag {counts.lag:,} messages,"
            f" {counts.lag_seconds:.1f} s"
        )
        if self._console.is_terminal:
            self._counts = Text(text, style="bold")
        else:
            self._now_and_then(text, COUNTS_SECONDS)

    def _show(self, text: str, seconds: float) -> None:
        if not self._console.is_terminal:
            self._now_and_then(text, seconds)
        elif self._busy is None:
            self.busy(text)
        else:
            self._busy.update(text=Text(text))

    def _now_and_then(self, text: str, seconds: float) -> None:
        if time.monotonic() - self._told >= seconds:
            self._told = time.monotonic()
            self.line(text)

    def _render(self) -> Group:
        return Group(*(part for part in (self._busy, self._counts) if part is not None))


def describe(progress: Progress) -> str:
    """A download in words: what, how many files, how much."""
    _, artifact, version = progress.what.split("+")[0].split(":")
    size = f"{progress.bytes / 1e6:.1f} MB"
    if progress.of is None:
        return (
            f"{artifact} {version}, once: looking up what it needs ({progress.files} descriptions,"
            f" {size})"
        )
    return f"{artifact} {version}, once: {progress.files} of {progress.of} files, {size}"
