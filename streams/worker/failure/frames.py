"""Where in a user's own code an error came up: file, line and function, which hold no message text.

An error's text can quote what a message says; where it was raised cannot. Of a traceback these
frames are the user's: not ours (but for our agents), not Faust's, not the standard library's, and
of what is installed only the packages that agents are in.

    myapp/text.py:12 in clean, myapp/agents/likes.py:31 in save         innermost first
"""

from __future__ import annotations

import inspect
import linecache
import re
import site
import sysconfig
from collections.abc import Awaitable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from sqlalchemy.exc import DBAPIError

import streams
from streams.registry import packages_of_agents

MOST_FRAMES = 3
LONGEST = 120  # characters of a file's or a function's name

_OURS = str(Path(streams.__file__).parent)
_LIBRARIES = tuple(
    dict.fromkeys(
        [
            *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            *site.getsitepackages(),
            site.getusersitepackages(),
        ]
    )
)
_NEVER = ("faust", "mode")
_AGENTS = "streams.agents"


class Frame(NamedTuple):
    """One line of a user's code.

    It has the file as its package names it, and the function with its class.
    """

    file: str
    line: int
    function: str
    path: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


def frames_of(error: BaseException, cause: BaseException) -> list[Frame]:
    """The user's frames of an error, innermost first, at most three of them.

    They are those nearest to its decisive `cause`. What SQLAlchemy raises in place of the driver's
    error carries the handler's frames, the driver's error none of them.
    """
    for each in [cause, *reversed(list(_with_wrapped(error)))]:
        frames = list(_own(_traceback(each)))
        if frames:
            return frames[: -MOST_FRAMES - 1 : -1]
    return []


def waiting_at(awaitable: Awaitable[Any]) -> list[Frame]:
    """Where a coroutine waits, in the user's code: innermost first, at most three frames."""
    frames = list(_own((frame, frame.f_lineno) for frame in _awaited(awaitable)))
    return frames[: -MOST_FRAMES - 1 : -1]


def text_of_frames(frames: Iterable[Frame]) -> str:
    """The frames in one line; empty when there are none."""
    return ", ".join(map(str, frames))


def is_written_in(name: str, frames: Iterable[Frame]) -> bool:
    """Whether a name stands in a file of these frames: then it is the code's, not a message's."""
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    return any(word.search(line) for frame in frames for line in linecache.getlines(frame.path))


def _with_wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it wraps, the nearest first, each once."""
    seen: set[int] = set()
    errors = [error]
    while errors:
        current = errors.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            errors += current.exceptions
        if isinstance(current, DBAPIError) and isinstance(current.orig, BaseException):
            errors.append(current.orig)
        errors += [each for each in (current.__cause__, current.__context__) if each is not None]


def _traceback(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _awaited(awaitable: Any) -> Iterator[FrameType]:
    """The frames of a coroutine that waits, from the outermost to where it waits."""
    for _ in range(100):
        if inspect.iscoroutine(awaitable):
            frame, awaitable = awaitable.cr_frame, awaitable.cr_await
        elif inspect.isgenerator(awaitable):
            frame, awaitable = awaitable.gi_frame, awaitable.gi_yieldfrom
        elif inspect.isasyncgen(awaitable):
            frame, awaitable = awaitable.ag_frame, awaitable.ag_await
        else:
            return
        if frame is not None:
            yield frame


def _own(steps: Iterable[tuple[FrameType, int]]) -> Iterator[Frame]:
    for frame, line in steps:
        module = str(frame.f_globals.get("__name__") or "")
        if _is_own(frame.f_code.co_filename, module):
            yield Frame(
                _file(frame.f_code, module), line, _name(frame.f_code), frame.f_code.co_filename
            )


def _is_own(path: str, module: str) -> bool:
    top = module.partition(".")[0]
    if path.startswith("<") or top in _NEVER:
        return False
    if module == _AGENTS or module.startswith(_AGENTS + "."):
        return True
    if _within(path, _OURS):
        return False
    return not any(_within(path, each) for each in _LIBRARIES) or top in packages_of_agents()


@lru_cache(maxsize=10_000)
def _within(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def _file(code: CodeType, module: str) -> str:
    """The path from the top of its package: it is the same on every machine."""
    path = Path(code.co_filename)
    depth = (
        1 if module in ("", "__main__") else module.count(".") + 1 + (path.name == "__init__.py")
    )
    return _short("/".join(path.parts[-depth:]))


def _name(code: CodeType) -> str:
    return _short(code.co_qualname)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"...{name[-LONGEST + 3 :]}"
