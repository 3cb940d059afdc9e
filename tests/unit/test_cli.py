"""The command line as a person meets it.

Help that is not cut, a user without a name, a folder nobody may write to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from streams.cli import COMMANDS, cli, console
from streams.errors import UsageError


def groups(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return []
    context = click.Context(command)
    found = [path]
    for name in command.list_commands(context):
        each = command.get_command(context, name)
        assert each is not None
        found += groups(each, (*path, name))
    return found


@pytest.mark.parametrize("path", groups(cli), ids=lambda path: " ".join(path) or "streams")
def test_no_line_of_help_is_cut(path: tuple[str, ...]) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli, [*path, "--help"])
    assert shown.exit_code == 0
    assert "..." not in shown.output.partition("Commands:")[2]
    if not path:
        assert all(f"  {name} " in shown.output for name in COMMANDS)


def test_a_user_without_a_name_acts_as_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenShift runs a container as a uid that no passwd file has."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert console.me().startswith(f"uid {os.getuid()}@")


@pytest.mark.parametrize("arguments", [["up"], ["up", "--detach"]])
def test_a_folder_that_cannot_be_written_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/proc")  # nobody may make a folder there, whoever they are
    error = CliRunner().invoke(cli, arguments, standalone_mode=False).exception
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"{Path('/proc/.dev')}")
    assert "cannot be written" in str(error)


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [str(Path(sys.executable).with_name("streams")), "settings"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr == "streams: the output cannot be written: No space left on device\n"
    assert ended.returncode == 1
