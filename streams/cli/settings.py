"""`streams settings`: every setting with its effective value and where it comes from.

Secrets are shown as ***.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import yaml

from streams.cli.choose import say, say_json
from streams.settings import DEV_SERVICES, FILE, load, public
from streams.settings.addresses import VARIABLES, meant_for_us
from streams.settings.sources import parsed


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="As JSON, without where the values come from."
)
def settings(as_json: bool) -> None:
    """Show every setting with its effective value."""
    plain = public(load())
    if as_json:
        say_json(plain)
        return
    file = _file()
    for section, values in plain.items():
        if not isinstance(values, dict) or not values:
            say(_line(section, values, _origin(file, section, None)))
            continue
        say(f"{section}:")
        for key, value in values.items():
            say("  " + _line(key, value, _origin(file, section, key, value)))


def _line(key: str, value: Any, origin: str) -> str:
    # One value on one line, whatever its shape.
    text = yaml.safe_dump(
        [value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return f"{key}: {text.strip()[1:-1]}{'  # ' if origin else ''}{origin}"


def _origin(file: dict[str, Any], section: str, key: str | None, value: Any = None) -> str:
    """The variable or file that a value comes from; nothing for a default."""
    variable = f"STREAMS_{section}__{key}".upper() if key else f"STREAMS_{section}".upper()
    named = VARIABLES.get(section) if key == "url" else None
    if os.environ.get(variable, "").strip():
        return variable
    if named and meant_for_us(section, url := os.environ.get(named, "").strip()) and url:
        return named
    in_file = file.get(section)
    if (
        in_file is not None
        if key is None
        else isinstance(in_file, dict) and in_file.get(key) is not None
    ):
        return os.environ.get("STREAMS_CONFIG", FILE)
    return str(DEV_SERVICES) if named and value else ""


def _file() -> dict[str, Any]:
    """The settings file as written; `load` has checked it."""
    file = Path(os.environ.get("STREAMS_CONFIG", FILE))
    content = parsed(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content if isinstance(content, dict) else {}
