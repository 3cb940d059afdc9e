"""Architecture: imports go one way, and business code loads neither Faust nor Kafka."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from streams.extras import EXTRAS

ROOT = Path(__file__).parents[2]

# Who may import whom, besides itself: rooms of `streams/`, the larger ones divided. What is not
# named is the core.
RELAY = ("relay.postgres", "relay.source", "relay.sink", "relay.debezium", "relay.leader", "relay")
VALUES = ("worker.delivery", "worker.set_aside")  # below every room that decides
WORKER = (
    *VALUES,
    "worker.database",
    "worker.driver",
    "worker.failure",
    "worker.run",
    "worker.retries",
    "worker",
)
BELOW = {"core", "streams"}
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "broker": set(BELOW),
    "agents": set(BELOW),
    "audit": {*BELOW, "broker"},
    "figures": set(BELOW),
    "operate": {*BELOW, "broker", "figures"},
    "web": {*BELOW, "broker", "operate", "audit", "figures"},
    "dev": {*BELOW, "agents"},  # the demo is business code, and has chats to tell
    "relay.postgres": {*BELOW, "broker"},
    "relay.source": {*BELOW, "relay.postgres"},
    "relay.sink": {*BELOW, "broker", "relay.postgres", "relay.source"},
    "relay.debezium": {*BELOW, "broker", "relay.postgres"},
    "relay.leader": {*BELOW, "broker", "figures", *RELAY[:4]},
    "relay": {*BELOW, "broker", "figures", *RELAY},
    "worker.delivery": set(BELOW),
    "worker.set_aside": {*BELOW, "worker.delivery"},
    "worker.database": {*BELOW, "broker"},
    "worker.driver": {*BELOW, "broker"},
    "worker.failure": {*BELOW, *VALUES, "worker.database", "worker.driver"},
    "worker.run": {*BELOW, "figures", *WORKER[:5]},
    "worker.retries": {*BELOW, *WORKER[:6]},
    "worker": {*BELOW, "broker", "figures", *WORKER},
    "testing": {*BELOW, "dev", *WORKER},  # a worker's decisions without Kafka, and the dev services
}
TOP = {"app", "cli"}
ALLOWED |= {top: {*ALLOWED, *TOP} for top in TOP}
# Small things of a process, beside every room of the worker.
BESIDE = {"worker.fail", "worker.memory"}
PLUGIN = "pytest_outbox_streams"
FORBIDDEN_TO_BUSINESS = ("faust", "mode", "aiokafka", "confluent_kafka", "opentelemetry")


def layer(module: str) -> str | None:
    """The room of a module; 'streams' is the package's public names; None when it is not ours."""
    names = module.split(".")
    if names[0] == PLUGIN:
        return "testing"
    if names[0] != "streams" or ".".join(names[1:3]) in BESIDE:
        return None
    if len(names) == 1:
        return "streams"
    inner = ".".join(names[1:3])
    if inner in ALLOWED:
        return inner
    return names[1] if names[1] in ALLOWED else "core"


def modules() -> Iterator[tuple[str, Path]]:
    yield PLUGIN, ROOT / f"{PLUGIN}.py"
    for path in sorted((ROOT / "streams").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, inside functions too.

    `from streams import kafka` counts as streams.broker.kafka.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for name in node.names:
                found = f"{node.module}.{name.name}"
                yield node.lineno, found if _is_module(found) else str(node.module)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


MODULES = list(modules())


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _ in MODULES])
def test_imports_go_one_way(module: str, path: Path) -> None:
    mine = layer(module)
    allowed = {"core"} if mine in ("streams", None) else ALLOWED[mine] | {mine}
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in imports(path)
        if layer(name) not in {None, *allowed}
    ]
    assert wrong == []


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _ in MODULES])
def test_only_worker_web_and_app_import_faust(module: str, path: Path) -> None:
    if (layer(module) or "worker").partition(".")[0] in ("worker", "web", "app"):
        return
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in imports(path)
        if name.split(".")[0] in ("faust", "mode")
    ]
    assert wrong == []


def test_db_holds_no_python_that_is_imported() -> None:
    """A user's own `db` would shadow it; Alembic loads its revisions by their paths."""
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "db").rglob("*.py")}
    assert {file for file in files if not file.startswith("db/migrations/versions/")} == {
        "db/migrations/env.py"
    }


def test_every_module_starts_with_a_sentence() -> None:
    for module, path in MODULES:
        text = path.read_text(encoding="utf-8")
        if text:
            docstring = ast.get_docstring(ast.parse(text))
            assert docstring, f"{module} has no docstring"
            first = docstring.splitlines()[0]
            assert first[-1] in ".:;,`)" or "\n" in docstring, module
            assert len(first) <= 100, f"{module} opens with more than one plain sentence: {first}"


def test_every_docstring_begins_with_a_sentence_of_one_line() -> None:
    for module, path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = (ast.get_docstring(node) or ".").splitlines()[0]
                assert first.endswith((".", ":")), f"{module}, {node.name}: {first}"


@pytest.mark.parametrize(
    "statement",
    [
        "import streams",
        "from streams import outbox; outbox.start()",
        "import streams.web.asgi, streams.web.aiohttp",
    ],
)
def test_business_code_loads_neither_faust_nor_kafka(statement: str, tmp_path: Path) -> None:
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert {"streams"} <= set(ended.stdout.split())
    assert set(ended.stdout.split()).isdisjoint(FORBIDDEN_TO_BUSINESS)


def test_importing_the_outbox_loads_no_driver_and_takes_a_fraction_of_its_time() -> None:
    """A service starts as fast as before.

    What its own sessions need is loaded by whoever makes them.
    """
    code = """
import sys, time
before, began = set(sys.modules), time.process_time()
import streams.outbox
took, loaded = time.process_time() - began, set(sys.modules) - before
began = time.process_time()
import sqlalchemy.ext.asyncio, sqlalchemy.orm, psycopg
print(len(loaded), took / (time.process_time() - began), *{name.split(".")[0] for name in loaded})
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    modules, ratio, *loaded = ended.stdout.split()
    assert {"sqlalchemy", "psycopg", "yaml", "click", "asyncio"}.isdisjoint(loaded)
    # 130 modules in a quarter of the time that SQLAlchemy and psycopg take, which is 40 ms on a
    # usual machine.
    assert int(modules) < 200
    assert float(ratio) < 0.6


def test_every_extra_names_the_modules_that_it_brings() -> None:
    """The line that tells what to install has to be true for whatever pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distributions = packages_distributions()
    for extra, modules in EXTRAS.items():
        wanted = {
            canonicalize_name(Requirement(line).name)
            for line in project["optional-dependencies"][extra]
        }
        brought = {canonicalize_name(name) for module in modules for name in distributions[module]}
        if extra == "otel":  # a namespace of many
            assert wanted <= brought
        else:
            assert brought == wanted - {"outbox-streams"}
