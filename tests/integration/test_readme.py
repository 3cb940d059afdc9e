"""README and docs are true.

Their blocks run, their commands and links exist, and faust.yml says the defaults.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson
import psycopg
import pytest
import yaml
from sqlalchemy.ext.asyncio import AsyncSession

from streams import outbox
from streams.cli import COMMANDS, cli
from streams.database import async_engine
from streams.dev.toolbox import CLIENTS
from streams.extras import EXTRAS
from streams.settings import Settings, load
from tests.conftest import Eventually, World
from tests.fixtures.projects import importable

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of a language, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def write_files(page: Path, folder: Path) -> None:
    """Make the page's files (blocks that begin with their path) and their packages."""
    for block in blocks(page, "python"):
        if found := re.match(r"# (\S+\.py)\n", block):
            file = folder / found[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
            for parent in takewhile(lambda each: each != folder, file.parents):
                (parent / "__init__.py").touch()


def install(page: Path, folder: Path) -> None:
    """Make the page's files, and the faust.yml that names its package."""
    write_files(page, folder)
    [setting] = set(
        re.findall(r"^agents: .*$|(?<=`)agents: \[.*?\](?=`)", page.read_text(), re.MULTILINE)
    )
    (folder / "faust.yml").write_text(f"{setting}\n")


@pytest.fixture
def business(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str) -> Iterator[Path]:
    """A folder that holds the README's package, as the working folder of a business service."""
    install(README, tmp_path)
    monkeypatch.chdir(tmp_path)
    importable(tmp_path, monkeypatch)
    for name in [name for name in os.environ if name.startswith("STREAMS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", database)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "myapp"]:
        del sys.modules[name]


async def test_the_readmes_python_enqueues_and_persists(
    business: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code: dict[str, Any] = {}
    enqueue, _ = blocks(README, "python")  # the other one is the file that `install` made
    exec(compile(enqueue, "README.md", "exec", dont_inherit=True), code)
    engine = async_engine(database)
    try:
        async with AsyncSession(engine) as session:
            outbox_id = await code["say"](session, 7, "c7", "hi")
        with psycopg.connect(database) as connection:
            rows = connection.execute(
                "SELECT id, biz_type, topic, key, payload FROM outbox"
            ).fetchall()
            for statement in [
                block for block in blocks(README, "sql") if block.startswith("CREATE TABLE")
            ]:
                connection.execute(statement.encode())
        message = {"user_id": 7, "conversation_id": "c7", "role": "user", "message": "hi"}
        assert rows == [(outbox_id, "chat_history_persist", "chat-history", "c7", message)]
        monkeypatch.setenv("STREAMS_OUTBOX__ENABLED", "false")
        outbox.start()
        like = sys.modules["myapp.agents.likes"].LikeAdded
        async with engine.begin() as database_connection:
            await outbox.record(database_connection, [like(post="p1", user_id=n) for n in range(3)])
        with psycopg.connect(database) as connection:
            found = connection.execute(
                "SELECT post, user_id FROM likes ORDER BY outbox_id"
            ).fetchall()
        assert found == [("p1", 0), ("p1", 1), ("p1", 2)]
    finally:
        outbox.close()
        await engine.dispose()


@pytest.mark.parametrize("page", ["README.md", "docs/agents.md"])
async def test_a_pages_sql_reaches_its_tables_through_relay_and_worker(
    world: World, eventually: Eventually, tmp_path: Path, page: str
) -> None:
    install(ROOT / page, tmp_path)
    world.environ |= {
        "STREAMS_CONFIG": str(tmp_path / "faust.yml"),
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }
    statements = blocks(ROOT / page, "sql")
    for statement in [each for each in statements if each.startswith("CREATE TABLE")]:
        world.query(statement)
    migrated = world.start("streams", "migrate")
    await eventually(lambda: not migrated.running, 60)
    assert migrated.returncode == 0, migrated.last_words(5)
    world.worker()
    world.relay()
    for statement in [each for each in statements if not each.startswith("CREATE TABLE")]:
        if " FROM " in statement:
            assert len(await eventually(lambda look=statement: world.query(look), 60)) == 1
        else:
            world.query(statement)


@pytest.mark.parametrize(
    "page",
    [
        "docs/enqueue.md",
        "docs/envelope.md",
        "docs/operations.md",
        "docs/tutorials/other-languages.md",
    ],
)
def test_the_sql_of_the_docs_runs(database: str, page: str) -> None:
    with psycopg.connect(database) as connection:
        for statement in blocks(ROOT / page, "sql"):
            connection.execute(statement.encode())


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_python_block_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_shell_line_names_what_exists(page: Path) -> None:
    for line in "".join(blocks(page, "sh")).splitlines():
        inner = re.fullmatch(r'eval "\$\((.*)\)"', line)
        check_command(shlex.split(inner[1] if inner else line, comments=True))


def test_the_commands_of_the_readme_are_found_by_a_new_shell() -> None:
    """In the order in which they stand there, by somebody who has done nothing else before."""
    script = ""
    for line in "".join(blocks(README, "sh")).splitlines():
        inner = re.fullmatch(r'eval "\$\((.*)\)"', line)
        [program, *_] = shlex.split(inner[1] if inner else line)
        # What `streams env` puts on PATH is PostgreSQL's own clients.
        script += (
            f"{line}\n"
            if program == "source"
            else ""
            if program in CLIENTS
            else f"command -v {program}\n"
        )
    ended = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, script + ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    named = re.findall(
        r"`((?:tests|db|streams|docs|benchmarks)/[\w./]*)`", page.read_text(encoding="utf-8")
    )
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)
def test_every_command_that_a_page_mentions_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"`((?:streams|make) [a-z][^`]*)`", text):
        check_command(shlex.split(line))


def check_command(words: list[str]) -> None:
    """Fail unless these words would start something that exists."""
    match words:
        case []:
            pass
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
                f"no target {target}"
            )
        case ["streams", name, *rest]:
            assert name in COMMANDS, f"no command {name}"
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            check_arguments(command, rest)
        case ["pip", "install", *names]:
            # What another package is called is for its own index to say.
            extras = [re.fullmatch(r"outbox-streams(?:\[([\w,]+)\])?", name) for name in names]
            assert {
                extra for found in extras if found and found[1] for extra in found[1].split(",")
            } <= EXTRAS.keys()
        case ["source", script]:
            assert script == ".venv/bin/activate"
        case ["python3", "-m", "venv", folder]:
            assert folder == ".venv"
        case ["mkdir" | "cd" | "echo" | "pytest" | "until", *_]:
            pass  # `.ci/new-user` types these lines
        case ["faust", *_]:
            assert " ".join(words) in (ROOT / "Procfile").read_text().replace(" -q", "")
        case [".venv/bin/python", "-m", "pytest", file]:
            assert (ROOT / file).is_file()
        case [program, *_]:
            assert program in CLIENTS, f"no such command: {program}"


def check_arguments(command: click.Command, words: list[str]) -> None:
    """Fail unless the command has these options, and the subcommand if it has any."""
    if words and isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"{command.name} has no command {words[0]}"
        return check_arguments(found, words[1:])
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known
    return None


def test_faust_yml_says_every_key_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "faust.yml").read_text(encoding="utf-8")
    assert load(ROOT / "faust.yml", {}, dev_services=tmp_path / "none.json") == Settings()
    spoken_out = yaml.safe_load(re.sub(r"^( *)#([a-z_]+:)", r"\1\2", text, flags=re.MULTILINE))
    defaults = msgspec.to_builtins(Settings())
    assert spoken_out == orjson.loads(orjson.dumps(defaults))  # where a tuple is a list
