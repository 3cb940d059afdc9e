"""Where an error came up in the user's own code, without a word of what a message says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError

from streams.worker.failure.classify import HandlerTimeout, SwallowedError, describe, without_text
from streams.worker.failure.frames import waiting_at
from streams.worker.failure.handler_call import _ending

HERE = "tests/unit/test_worker_frames.py"


class Saver:
    """A handler with parts."""

    def clean(self, text: Any) -> Any:
        return text.strip()

    def save(self, texts: list[Any]) -> None:
        for text in texts:
            self.clean(text)


def raised(act: Callable[[], Any]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_innermost_frames_of_the_users_code_are_named_with_class_and_function() -> None:
    error = raised(lambda: Saver().save(["fine", 7]))
    line = Saver.clean.__code__.co_firstlineno + 1
    code, reason = describe(error)
    assert code == "AttributeError"
    assert reason.startswith(
        f"the handler raised AttributeError, at {HERE}:{line} in Saver.clean,"
        f" {HERE}:{line + 4} in Saver.save, {HERE}:"
    )
    assert reason.count(HERE) == 3


def test_frames_of_libraries_are_left_out_and_text_of_a_message_is_never_shown() -> None:
    reason = describe(raised(lambda: json.loads("canary")))[1]
    assert "json/" not in reason
    assert "canary" not in reason
    assert f"at {HERE}:" in reason


@pytest.mark.parametrize("how", ["cause", "context", "group"])
def test_the_frames_are_those_of_what_decides(how: str) -> None:
    def inner() -> None:
        raise errors.lookup("23505")("x")

    def outer() -> None:
        if how == "group":
            raise ExceptionGroup("of tasks", [raised(lambda: int("x")), raised(inner)])
        try:
            inner()
        except Exception as error:
            if how == "cause":
                raise RuntimeError("canary") from error
            raise RuntimeError("canary")  # noqa: B904 - as handlers do it

    code, reason = describe(raised(outer))
    assert code == "23505"
    assert f", at {HERE}:{inner.__code__.co_firstlineno + 1} in " in reason


def test_the_frames_of_what_sqlalchemy_raises_in_place_of_the_driver_count() -> None:
    def execute() -> None:
        try:
            raise errors.lookup("23514")("x")
        except Exception as error:
            error.__traceback__ = None  # the driver's own error knows no handler
            raise DBAPIError("INSERT", {}, error) from error

    reason = describe(raised(execute))[1]
    assert reason.startswith(f"CheckViolation (23514), at {HERE}:")
    assert "execute" in reason.split(", ")[1]


def named(message: str, state: str = "42703") -> Exception:
    """An error of the server with these words."""
    info = _Result(message, state)
    return errors.lookup(state)(message, info=info)  # type: ignore[arg-type]


class _Result:
    """As much of libpq's result as an error asks for."""

    def __init__(self, message: str, state: str) -> None:
        self._fields = {ord("M"): message.encode(), ord("C"): state.encode()}

    def error_field(self, field: int) -> bytes | None:
        return self._fields.get(field)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ('column "notte" of relation "canary_1" does not exist', "column notte"),
        ("column l.notte does not exist", "column notte"),
        (
            'column "canary_2 said" does not exist',
            None,
        ),  # a handler that formats text into its statement
    ],
)
def test_a_missing_name_is_told_when_the_code_has_it(message: str, names: str | None) -> None:
    message = message.replace("canary_", "word" + "_")  # so that it stands nowhere in this file

    def save() -> None:
        raise named(message)

    reason = describe(raised(save))[1]
    assert reason.startswith("UndefinedColumn (42703)" + (f": {names}, at" if names else ", at"))
    assert "word" not in reason


def test_a_package_that_is_installed_is_the_users_when_it_has_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the user's own wheel lies beside the libraries."""
    monkeypatch.setattr("streams.worker.failure.frames._LIBRARIES", (str(tmp_path),))
    module = load(
        tmp_path / "likes/agents/likes.py", "likes.agents.likes", "def save():\n    return 1 / 0\n"
    )
    assert "likes/agents" not in describe(raised(module.save))[1]
    monkeypatch.setattr(
        "streams.worker.failure.frames.packages_of_agents", lambda: frozenset({"likes"})
    )
    assert ", at likes/agents/likes.py:2 in save" in describe(raised(module.save))[1]


def load(path: Path, name: str, code: str) -> ModuleType:
    path.parent.mkdir(parents=True)
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_handler_that_takes_too_long_is_told_where_it_waits() -> None:
    async def wait() -> None:
        await asyncio.sleep(60)

    async def save() -> None:
        await wait()

    task = asyncio.ensure_future(save())
    with pytest.raises(HandlerTimeout) as caught:
        async with _ending(task):
            await asyncio.wait([task], timeout=0.05)
    code, reason = describe(caught.value)
    assert code == "timeout"
    assert ", at " + HERE in reason
    assert "wait, tests" in reason
    ended = asyncio.sleep(0)
    assert waiting_at(ended) == []
    ended.close()


def test_a_log_line_has_class_state_and_place_and_no_words_of_the_handler() -> None:
    def save() -> None:
        raise ValueError("canary")

    about = without_text(raised(save))
    assert about.keys() == {"error", "at"}
    assert about["error"] == "ValueError"
    assert about["at"].startswith(f"{HERE}:")

    def swallow() -> None:
        cause = raised(lambda: Saver().save([7]))
        raise SwallowedError("save") from (
            named('relation "likes" does not exist', "42P01") if cause else None
        )

    about = without_text(raised(swallow))
    assert (about["error"], about["sqlstate"]) == ("UndefinedTable", "42P01")
    assert about["names"] == "table likes"
