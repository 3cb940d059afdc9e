"""Nothing that others wrote reaches a terminal as it is."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.audit.topics import _root
from streams.cli import topic
from streams.cli.trace import describe
from streams.log import _Json, _Text
from streams.operate.history import HistoryStep, MessageHistory
from streams.terminal import document, printable, printable_json, printable_lines, time_of

NASTY = "\x1b]0;owned\x07\x1b[2J \x9b31m \u202e txet \u2066 \x7f \r \u2028"
ROOT = Path(__file__).parents[2]


@given(st.text())
def test_one_line_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_means_the_same_and_is_printable(text: str) -> None:
    value = {"text": text, text: [1, None]}
    shown = document(value)
    assert json.loads(shown) == value
    assert shown.replace("\n", "").isprintable()
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("millis", "shown"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (10**15, "1000000000000000ms(no-such-year)"),
        (-(2**63), f"{-(2**63)}ms(no-such-year)"),
        (2**63 - 1, f"{2**63 - 1}ms(no-such-year)"),
    ],
)
def test_a_time_outside_the_calendar_is_its_milliseconds(millis: int, shown: str) -> None:
    assert time_of(millis) == shown


class Record:
    """A record as librdkafka gives it, every part of it by somebody else."""

    def __init__(self, headers: Any, millis: int = 10**15) -> None:
        self._headers, self._millis = headers, millis

    def headers(self) -> Any:
        """Those given, or what the client does where a name is not UTF-8."""
        if self._headers is None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        """Kind and milliseconds."""
        return 1, self._millis

    def partition(self) -> int:
        """Some partition."""
        return 3

    def offset(self) -> int:
        """Some offset."""
        return 4

    def key(self) -> bytes:
        """A key of somebody else's."""
        return NASTY.encode() + b"\xff"

    def value(self) -> bytes:
        """Text of somebody else's."""
        return NASTY.encode()


@pytest.mark.parametrize(
    "headers",
    [[("id", b"9" * 5000), ("biz_type", NASTY.encode()), ("resend_of", NASTY.encode())], None, []],
)
def test_a_record_of_somebody_else_is_one_harmless_line(headers: Any) -> None:
    record: Any = Record(headers)
    assert topic.describe(record, values=True).isprintable()


@pytest.mark.parametrize(
    "raw", [b"9" * 5000, b"", b"-1", "٣".encode(), NASTY.encode(), b"0", str(2**63).encode()]
)
def test_an_id_header_that_is_none_names_no_message(raw: bytes) -> None:
    assert _root({"id": raw}) == _root({"resend_of": raw}) == 0


def test_a_trace_is_harmless() -> None:
    event = HistoryStep(NASTY, None, {"error": NASTY, "traceparent": NASTY})
    shown = describe(MessageHistory(f"seed:{1}", NASTY, NASTY, NASTY, NASTY, [event]))
    assert [line.isprintable() for line in shown.split("\n")] == [True, True]


@pytest.mark.parametrize("formatter", [_Text(tracebacks=True), _Json(tracebacks=True)])
def test_a_log_line_is_harmless(formatter: logging.Formatter) -> None:
    record = logging.makeLogRecord(
        {"msg": f"said {NASTY}", "key": NASTY, "deep": {NASTY: [NASTY]}, "name": "x"}
    )
    assert formatter.format(record).isprintable()


def test_an_error_is_harmless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from streams.cli import main

    with pytest.raises(SystemExit):
        main(["trace", f"--since={NASTY}", "--key", "a"])
    assert "\x1b" not in capsys.readouterr().err


def test_every_command_prints_through_one_function() -> None:
    """`streams env` is the exception: a shell reads it, and the URL is the developer's own."""
    raw = {
        (path.name, node.func.attr)
        for path in (ROOT / "streams" / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("echo", "secho")
    }
    assert raw == {("choose.py", "echo"), ("services.py", "echo")}
