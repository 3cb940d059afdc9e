"""`streams init` and `streams new agent`: the files that a first agent of one's own needs."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import click

from streams.cli.choose import Commands, say
from streams.errors import UsageError
from streams.settings import AGENTS, FILE, load

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
TEMPLATES = Path(__file__).parent / "templates"


@click.command()
@click.option(
    "--package", default="myapp", show_default=True, help="The package that will hold your agents."
)
@click.option(
    "--agent", "name", default="notes", show_default=True, help="The first agent, and its table."
)
def init(package: str, name: str) -> None:
    """Write faust.yml, a Procfile, and a first agent with table and tests into this folder."""
    _check("package", package)
    _check("agent", name)
    files = {
        FILE: _text("faust.yml", package=package),
        "Procfile": _text("Procfile"),
        **_agent(package, name),
    }
    _write(files | {f"{package}/__init__.py": "", f"{package}/agents/__init__.py": ""})
    say(
        f'next: `streams up` in one terminal; psql "$DATABASE_URL" -f sql/{name}.sql and `pytest`'
        " in another, after"
        ' eval "$(streams env)"'
    )


@click.group(cls=Commands)
def new() -> None:
    """Write a new file of a kind."""


@new.command()
@click.argument("name")
@click.option(
    "--package", help="The package of agents; default: the first one of your own in `agents`."
)
def agent(name: str, package: str | None) -> None:
    """Write an agent NAME with its table sql/NAME.sql and its tests."""
    _check("agent", name)
    named = package or next(
        (each for each in load().agents if not f"{each}.".startswith(f"{AGENTS}.")), None
    )
    if named is None:
        raise UsageError(
            "`agents` names no package of your own: run `streams init`, or give --package"
        )
    package = named.removesuffix(".agents")
    if "." in package or not Path(package, "agents", "__init__.py").is_file():
        raise UsageError(
            f"package {named!r} has no folder {package}/agents here: expected the working folder to"
            " hold it"
        )
    _write(_agent(package, name))


def _agent(package: str, name: str) -> dict[str, str]:
    """The files of an agent, by path."""
    kind = "".join(part.capitalize() for part in name.split("_"))
    words = {"package": package, "name": name, "kind": kind, "topic": name.replace("_", "-")}
    return {
        f"{package}/agents/{name}.py": _text("agent.py", **words),
        f"sql/{name}.sql": _text("table.sql", **words),
        f"tests/test_{name}.py": _text("test.py", **words),
        **(
            {}
            if Path("conftest.py").exists() or Path("tests/conftest.py").exists()
            # Beside the package: so pytest lets tests import it.
            else {"conftest.py": _text("conftest.py")}
        ),
    }


def _text(template: str, **words: str) -> str:
    """A file's text, with these words in it."""
    return Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)


def _check(kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{kind} {name!r:.60}: expected a name of lower case letters, digits and underscores"
        )


def _write(files: dict[str, str]) -> None:
    """All of them, or none: what is there already is never overwritten."""
    if there := sorted(file for file, text in files.items() if text and Path(file).exists()):
        raise UsageError(f"{', '.join(there)} exists already: nothing was written")
    for file, text in files.items():
        path = Path(file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if text or not path.exists():
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{error.filename or path} cannot be written: {error.strerror}"
            ) from None
        if text:
            say(f"wrote {file}")
