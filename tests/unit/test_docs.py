"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:unit|contract|integration|acceptance|worker|relay|db)/[\w/]+\.\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in _headings(target), link


@pytest.mark.parametrize("page", ["reliability.md", "environments.md"])
def test_every_rule_and_test_that_a_page_names_is_where_it_says(page: str) -> None:
    named = FILE.findall((ROOT / "docs" / page).read_text())
    assert len(named) > 20
    for name in named:
        folder = name.split("/")[0]
        above = {"worker": "streams", "relay": "streams", "db": "."}.get(folder, "tests")
        assert (ROOT / above / name).exists(), name


def test_every_test_that_shows_a_promise_of_the_pages_is_there() -> None:
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    there = {*tests, *re.findall(r"def (test_\w+)", "\n".join(tests.values()))}
    named = set(re.findall(r"\btest_\w+(?:\.py)?", (ROOT / "docs/pages.md").read_text()))
    assert len(named) > 15
    assert named <= there, named - there


def _headings(page: Path) -> set[str]:
    """As the places that a link can name: small letters, no punctuation, dashes."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
