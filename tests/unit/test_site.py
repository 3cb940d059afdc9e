"""The docs are a site: each page in its navigation, no broken link, nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(https?:|//)|<link[^>]*\s(?:stylesheet|preconnect)[^>]*https?:"""
)


def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # No proxy leads out: what would ask for something fails.
    closed = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    environ = {**os.environ, **closed, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    pages = {file: file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.html")}
    assert len(pages) > 40
    assert [file.name for file, text in pages.items() if LOADED.search(text)] == []
    # Public functions are there, with what they say.
    python = pages[tmp_path / "reference/python/index.html"]
    for name in ("enqueue_sync", "persist", "Reject", "include_object"):
        assert f"{name}" in python
    assert "Enqueue one event" in python
    # A link to a file of the repository names it; README and changelog are pages.
    assert "streams/agents/chat_history.py" in pages[tmp_path / "frameworks/index.html"]
    assert "../streams/" not in pages[tmp_path / "architecture/index.html"]
