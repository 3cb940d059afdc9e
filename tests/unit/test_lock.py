"""What `make venv` installs runs on every Python that we name."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def test_every_pinned_package_takes_the_oldest_python() -> None:
    """One that needs 3.11.5 is not found by the 3.11.2 of Debian, and nothing is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    looked_at = 0
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith(("#", "-")):
            continue
        requirement = Requirement(line)
        try:
            about = metadata(requirement.name)
        except PackageNotFoundError:  # of another Python or system
            assert requirement.marker, line
            continue
        looked_at += 1
        needed = str(about.json.get("requires_python", ""))
        assert SpecifierSet(needed).contains(oldest), f"{line} needs Python {needed}"
    assert looked_at > 50
