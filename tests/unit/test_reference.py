"""The reference pages say what the code says."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import reference

ROOT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_a_page_that_is_written_from_the_code_is_what_the_code_says(name: str) -> None:
    file, text = reference.FOLDER / name, reference.pages()[name]
    if os.environ.get("WRITE_REFERENCE"):
        file.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == text, "run `make reference`"


def test_every_log_message_is_in_the_reference_and_no_other() -> None:
    rows = (ROOT / "docs/reference/logs.md").read_text(encoding="utf-8")
    said = set(re.findall(r"^\| `(.+?)` \|", rows, re.MULTILINE))
    assert said == {
        message
        for file in (ROOT / "streams").rglob("*.py")
        for message in log_messages(ast.parse(file.read_text(encoding="utf-8")))
    }


def test_messages_are_found_wherever_they_are_given_to_a_logger() -> None:
    code = """\
LATE = "late"
def act(error, lost):
    logger.info("one", extra={})
    logger.log(level, "two" if lost else "three")
    text, level = f"{error}: waits", 30
    logger.log(level, text)
    logger.warning(LATE)
    fail_stop("four", reason="no message")
"""
    messages = set(log_messages(ast.parse(code)))
    assert messages == {"one", "two", "three", "...: waits", "late", "four"}


def log_messages(tree: ast.Module) -> Iterator[str]:
    """The constant texts that a module gives to its logger, or to `fail_stop`."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and (given := _message(call)) is not None:
                texts = list(_texts(given, function, tree))
                # `fail_stop` itself logs what it was given.
                assert texts or function.name == "fail_stop", ast.unparse(call)
                yield from texts


def _message(call: ast.Call) -> ast.expr | None:
    match call.func:
        case ast.Attribute(value=ast.Name("logger"), attr=level) if level in LEVELS:
            return call.args[1 if level == "log" else 0]
        case ast.Name("fail_stop"):
            return call.args[0]
    return None


def _texts(given: ast.expr, function: ast.AST, module: ast.Module) -> Iterator[str]:
    match given:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr(values):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in values)
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body, function, module)
            yield from _texts(orelse, function, module)
        case ast.Name(name):
            for statement in [*ast.walk(function), *module.body]:
                if isinstance(statement, ast.Assign):
                    for target in statement.targets:
                        yield from _assigned(name, target, statement.value, function, module)


def _assigned(
    name: str, target: ast.expr, value: ast.expr, function: ast.AST, module: ast.Module
) -> Iterator[str]:
    match target, value:
        case ast.Name(assigned), _ if assigned == name:
            yield from _texts(value, function, module)
        case ast.Tuple(targets), ast.Tuple(values):
            for each, given in zip(targets, values, strict=True):
                yield from _assigned(name, each, given, function, module)
