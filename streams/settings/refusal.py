"""Why settings are refused, in words.

They name the key as a person writes it, the value, and what was expected.
"""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import msgspec

from streams.settings.secrets import SECRETS
from streams.settings.sections import Settings, Token, Topic, User
from streams.type_errors import explain

# Sections whose keys are names that people give, and what each value is.
NAMED: dict[str, Any] = {"topics": Topic, "web.users": User, "web.tokens": Token}

_WORDS = {
    "object": "a section of keys",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def _word(kind: str) -> str:
    return _WORDS.get(kind, kind)


def refusal(error: msgspec.ValidationError, raw: dict[str, Any]) -> str:
    """Key as a person writes it, offending value, expectation."""
    key, expected = explain(error, Settings)
    if expected == "expected only declared fields":
        return _unknown(key, raw)
    section = key.partition("[...]")[0]
    if key.startswith(f"{section}[...]"):
        key = key.replace("[...]", f".{_bad_name(section, raw)}", 1)
    elif expected.endswith(" for a key"):
        bad = next(name for name in _at(raw, key) if not isinstance(name, str))
        return (
            f"setting {f'{key}.{bad}'.lstrip('.')!r} is a key of type {type(bad).__name__}:"
            " expected text"
        )
    expected = re.sub(
        r"`([\w |]+)`", lambda match: " or ".join(map(_word, match[1].split(" | "))), expected
    )
    return f"setting {key!r} is {_shown(key, _at(raw, key))}: {expected}"


def _unknown(key: str, raw: dict[str, Any]) -> str:
    """Its value is not repeated: a misspelt `sasl_password` has one too."""
    kind: Any = Settings
    section, named, _ = key.partition("[...]")
    if named:
        key, kind = f"{section}.{_bad_name(section, raw)}", NAMED[section]
    elif key:
        kind = get_type_hints(Settings)[key]
    values = _at(raw, key)
    unknown = next(name for name in values if name not in kind.__struct_fields__)
    full = f"{key}.{unknown}" if key else unknown
    return f"unknown setting {full!r}: expected one of {', '.join(kind.__struct_fields__)}"


def _bad_name(section: str, raw: dict[str, Any]) -> str:
    """Which of the names in a section holds what was refused."""
    for name, values in _at(raw, section).items():
        try:
            msgspec.convert(values, NAMED[section])
        except msgspec.ValidationError:
            return str(name)
    return "[...]"


def _at(raw: Any, key: str) -> Any:
    """The value at `relay.name`, `agents[1]`; topic names may hold dots themselves."""
    if not key:
        return raw
    for name, value in raw.items() if isinstance(raw, dict) else ():
        if key == name:
            return value
        if isinstance(name, str) and key.startswith((f"{name}.", f"{name}[")):
            return _at(value, key[len(name) :].lstrip("."))
    item = re.fullmatch(r"\[(\d+)\]", key)
    return raw[int(item[1])] if item and isinstance(raw, list) else None


def _shown(key: str, value: Any) -> str:
    """Whoever writes `database: postgresql://user:password@...` does not see it again either."""
    if (
        key.endswith("url")
        or key.rpartition(".")[2] in SECRETS
        or key.startswith(tuple(f"{section}." for section in NAMED if section != "topics"))
        or (key in ("database", "broker", "connect", "web") and isinstance(value, str | list))
    ):
        return "***"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
