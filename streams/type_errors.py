"""What msgspec refused, as a path and an expectation that hold names and types, never a value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

# The last ` - at ` is msgspec's own; an earlier one may stand in the refused value.
_PLACE = re.compile(r"(?P<text>.*) - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|(\[[^]]*\])")


def explain(error: msgspec.ValidationError, wanted: Any) -> tuple[str, str]:
    """Path and expectation of a type error.

    The path is `topics[...].partitions` ('' is the whole), the expectation ``expected `int`, got
    `str` ``. `wanted` is the type it was converted to. Choices are listed, a pattern is told in
    words: `Meta(description=...)`.
    """
    match = _PLACE.fullmatch(str(error))
    text, path = (match["text"], match["path"]) if match else (str(error), "")
    kinds = list(_at(inspect.type_info(wanted), path))
    where = path.lstrip(".")
    if error.__cause__ is not None:
        return where, "expected what its __post_init__ accepts"
    if text.startswith("Object missing required field"):
        missing = text.split("`")[1]
        return (f"{where}.{missing}" if where else missing), "expected a value, got none"
    if text.startswith("Object contains unknown field"):
        return where, "expected only declared fields"
    if text.startswith(("Invalid enum value", "Invalid value")):
        choices = ", ".join(str(choice) for kind in kinds for choice in _choices(kind))
        return (
            where,
            f"expected one of {choices}" if choices else "expected one of its declared values",
        )
    if " matching regex " in text and (
        description := next(filter(None, map(_description, kinds)), None)
    ):
        return where, f"expected {description}"
    return where, text[0].lower() + text[1:] + (" for a key" if match and match["key"] else "")


def _at(kind: inspect.Type, path: str) -> Iterator[inspect.Type]:
    """The types that may stand at `path`, Metadata wrappers included."""
    kinds = list(_flat(kind))
    for name, item in _STEP.findall(path):
        kinds = [
            flat for each in kinds for inner in _inside(each, name, item) for flat in _flat(inner)
        ]
    yield from kinds


def _flat(kind: inspect.Type) -> Iterator[inspect.Type]:
    yield kind
    if isinstance(kind, inspect.Metadata):
        yield from _flat(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _flat(each)


def _inside(kind: inspect.Type, name: str, item: str) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.StructType | inspect.DataclassType):
        yield from (field.type for field in kind.fields if field.encode_name == name)
    elif item and isinstance(kind, inspect.ListType | inspect.VarTupleType):
        yield kind.item_type
    elif item and isinstance(kind, inspect.DictType):
        yield kind.value_type


def _choices(kind: inspect.Type) -> tuple[Any, ...]:
    if isinstance(kind, inspect.EnumType):
        return tuple(member.value for member in kind.cls)
    return tuple(kind.values) if isinstance(kind, inspect.LiteralType) else ()


def _description(kind: inspect.Type) -> str | None:
    schema = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    return (schema or {}).get("description")
