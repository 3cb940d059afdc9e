"""The programs of the tutorial enqueue from Node and Go, with the drivers that they name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.programs import program
from tests.integration.test_readme import ROOT, blocks

PAGE = ROOT / "docs/tutorials/other-languages.md"
STEPS = 240.0  # seconds: a driver is downloaded, and Go compiles it


def run(folder: Path, *command: str, **environ: str) -> str:
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=STEPS,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def enqueued(database: str, outbox_id: str) -> tuple[object, ...]:
    with psycopg.connect(database) as connection:
        statement = "SELECT biz_type, topic, key, payload->>'message' FROM outbox WHERE id = %s"
        [row] = connection.execute(statement, [int(outbox_id)]).fetchall()
        return tuple(row)


@pytest.mark.long
def test_node_enqueues_in_its_own_transaction(database: str, tmp_path: Path) -> None:
    node, npm = program("nodejs", "node"), program("npm", "npm")
    [code] = blocks(PAGE, "js")
    (tmp_path / "say.mjs").write_text(code)
    run(tmp_path, npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", ".", "pg@8")
    said = run(tmp_path, node, "say.mjs", DATABASE_URL=database)
    row = ("chat_history_persist", "chat-history", "c2", "from Node")
    assert enqueued(database, said) == row


@pytest.mark.long
def test_go_enqueues_in_its_own_transaction(database: str, tmp_path: Path) -> None:
    go = program("golang-go", "go")
    [code] = blocks(PAGE, "go")
    (tmp_path / "main.go").write_text(code)
    run(tmp_path, go, "mod", "init", "say")
    run(tmp_path, go, "get", "github.com/jackc/pgx/v5")
    said = run(tmp_path, go, "run", ".", DATABASE_URL=database)
    assert enqueued(database, said) == ("chat_history_persist", "chat-history", "c3", "from Go")
