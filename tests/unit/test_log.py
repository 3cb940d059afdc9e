"""Log lines: constant message, data as key=value or JSON, one line each."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import StatementError

from streams.database import async_engine, sync_engine
from streams.log import setup
from streams.settings import Log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_shows_data_as_words(capsys: pytest.CaptureFixture[str]) -> None:
    setup(Log())
    logging.getLogger("streams.x").warning(
        "message dead", extra={"outbox_id": 7, "reason": "too\nlarge = 1"}
    )
    line = capsys.readouterr().err
    assert line.endswith('WARNING streams.x: message dead outbox_id=7 reason="too\\nlarge = 1"\n')
    assert line.count("\n") == 1


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup(Log(format="json", level="warning"))
    logging.getLogger("streams.x").info("not shown")
    logging.getLogger("streams.x").warning("message dead", extra={"outbox_id": 7, "where": object})
    [line] = capsys.readouterr().err.splitlines()
    logged = json.loads(line)
    assert (logged["level"], logged["message"], logged["outbox_id"]) == (
        "warning",
        "message dead",
        7,
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_shows_only_when_debugging(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for debug in (False, True):
        setup(Log(format=form), debug=debug)  # type: ignore[arg-type]
        try:
            raise ValueError("secret text")
        except ValueError:
            logging.getLogger("streams.x").exception("failed")
        assert ("Traceback" in (line := capsys.readouterr().err)) is debug
        assert "ValueError" in line
        assert "test_log.py:" in line and "test_a_traceback_shows_only_when_debugging" in line
        assert ("secret text" in line) is debug


def test_errors_of_sqlalchemy_repeat_no_parameters() -> None:
    """They hold message text, and tracebacks are logged."""
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    for engine in (sync_engine(url), async_engine(url).sync_engine):
        error = StatementError(
            "no",
            "SELECT :text",
            {"text": "canary-4711"},
            None,
            hide_parameters=engine.hide_parameters,
        )
        assert "canary-4711" not in str(error)


def test_a_library_repeats_itself_seldom_whatever_the_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup(Log())
    for size in range(3):
        formatted = f"producer buffer full size {size}"  # as Faust does
        logging.getLogger("faust.transport.producer").warning(formatted)
        logging.getLogger("aiokafka").error("Failed fetch messages from %s: %s", size, "gone")
        logging.getLogger("streams.x").warning("ours is always heard")
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == [
        "WARNING faust.transport.producer: producer buffer full size 0",
        "ERROR aiokafka: Failed fetch messages from 0: gone",
    ]
    assert lines[2:] == ["WARNING streams.x: ours is always heard"] * 3


def test_lines_of_a_pool_about_an_outage_are_left_to_whoever_waits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup(Log())
    logging.getLogger("sqlalchemy.pool.impl.AsyncAdaptedQueuePool").error(
        "Exception during reset or similar"
    )
    assert capsys.readouterr().err == ""
    setup(Log(), debug=True)
    logging.getLogger("sqlalchemy.pool.impl.AsyncAdaptedQueuePool").error(
        "Exception during reset or similar"
    )
    assert "Exception during reset" in capsys.readouterr().err
