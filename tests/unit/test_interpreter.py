"""Which Python is started, whatever hosts this one."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from streams.errors import StreamsError
from streams.interpreter import interpreter

BASE: str = vars(sys)["_base_executable"]


def test_a_python_starts_itself() -> None:
    assert interpreter() == sys.executable


@pytest.mark.parametrize("executable", ["/usr/bin/uwsgi-core", "", None, BASE, "/nowhere/python"])
def test_below_another_host_it_is_the_python_of_this_environment(
    executable: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """uWSGI names itself, or the Python that the environment was made of."""
    environment = tmp_path / "with spaces"
    venv.create(environment, symlinks=True)
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "executable", executable)
    program = interpreter()
    code = "import sys; print(sys.prefix, *sys.version_info[:2])"
    said = subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[0] == f"{environment} {sys.version_info[0]} {sys.version_info[1]}"


def test_without_an_environment_it_is_the_installed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi-core")
    assert Path(interpreter()).resolve() == Path(BASE).resolve()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: str(tmp_path))
    with pytest.raises(StreamsError, match=r"no Python is in .* and /usr/bin/uwsgi-core is none"):
        interpreter()
