"""The first hour of a new user, as the docs tell it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "new-user"


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_new_user_comes_from_a_checkout_to_an_agent_of_their_own() -> None:
    ended = subprocess.run([str(SCRIPT)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("all of it worked\n")
