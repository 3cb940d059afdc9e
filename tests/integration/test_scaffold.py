"""`streams init` and `streams new agent`.

What they write works, is tested, and replaces nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streams.cli import cli
from streams.errors import UsageError
from tests.integration.test_pytest_plugin import run as run_pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMS_CONFIG", raising=False)
    return tmp_path


def streams(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, standalone_mode=False)


def test_a_new_project_has_an_agent_with_its_table_and_its_tests_pass(here: Path) -> None:
    made = streams("init", "--package", "shop", "--agent", "likes")
    assert made.exception is None, made.output
    assert "wrote shop/agents/likes.py" in made.output
    more = streams("new", "agent", "order_lines")
    assert more.exception is None, more.output
    assert more.output == (
        "wrote shop/agents/order_lines.py\nwrote sql/order_lines.sql\nwrote"
        " tests/test_order_lines.py\n"
    )
    ended = run_pytest(here)
    assert ended.returncode == 0, ended.stdout
    assert "4 passed" in ended.stdout
    before = {file: file.read_text() for file in here.rglob("*.py")}
    for arguments, line in (
        (("init", "--package", "shop"), "Procfile, faust.yml"),
        (("new", "agent", "likes"), "shop/agents/likes.py, sql/likes.sql, tests/test_likes.py"),
    ):
        error = streams(*arguments).exception
        assert isinstance(error, UsageError)
        assert str(error) == f"{line} exists already: nothing was written"
    assert {file: file.read_text() for file in here.rglob("*.py")} == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("new", "agent", "likes"),
            "`agents` names no package of your own: run `streams init`, or give --package",
        ),
        (
            ("new", "agent", "likes", "--package", "shop"),
            "package 'shop' has no folder shop/agents here",
        ),
        (
            ("new", "agent", "../likes"),
            "agent '../likes': expected a name of lower case letters, digits and underscores",
        ),
        (
            ("init", "--package", "my-app"),
            "package 'my-app': expected a name of lower case letters",
        ),
    ],
)
def test_a_scaffold_that_cannot_be_written_is_refused_in_one_line(
    here: Path, arguments: tuple[str, ...], line: str
) -> None:
    error = streams(*arguments).exception
    assert isinstance(error, UsageError)
    assert str(error).startswith(line)
    assert list(here.iterdir()) == []


def test_a_shell_completes_commands() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_STREAMS_COMPLETE" in streams("completion", shell).output
