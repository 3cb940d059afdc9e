"""The image of deploy/, built and run as a cluster runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import World
from tests.fixtures.programs import program

SCRIPT = Path(__file__).parents[2] / ".ci" / "image"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_image_works_on_a_read_only_root_as_a_user_without_a_name(world: World) -> None:
    program("buildah", "buildah")
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    ended = subprocess.run(
        [str(SCRIPT)],
        env={**os.environ, **world.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "its user is 65532:65532" in ended.stdout
    assert ended.stdout.endswith("the worker ended with 0\n")
