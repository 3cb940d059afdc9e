"""Make a site of the docs, with README and changelog, and without links out of it."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages of the site that lie beside docs/, by where they are.
BESIDE = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    for file, page in BESIDE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead to pages of the site; a file of the repository is named instead."""
    beside = {name: file for file, name in BESIDE.items()}
    where = beside.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        picture, label, target, heading = match.groups()
        if "://" in target:
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(where), target))
        if path in BESIDE:
            uri = BESIDE[path]
        elif path.startswith("docs/"):
            uri = path.removeprefix("docs/")
        elif f"`{path}`" in label:
            return str(label)
        else:
            return f"{label} (`{path}`)"
        here = os.path.dirname(page.file.src_uri)
        return f"{picture}[{label}]({os.path.relpath(uri, here or '.')}{heading or ''})"

    return LINK.sub(link, markdown)
