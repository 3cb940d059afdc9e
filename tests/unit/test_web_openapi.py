"""The description of the API is whole: every call is in it, and all that it refers to is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from streams.message_id import MAX_ID
from streams.operate import Choice
from streams.web.openapi import description
from streams.web.operating import PreviewForm
from streams.web.table import ROUTES


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in it."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_call_is_described_with_its_parameters_and_its_right() -> None:
    told = json.loads(json.dumps(description()))
    assert told["openapi"] == "3.1.0"
    names = []
    for route in ROUTES:
        if not route.path.startswith("/api/") or route.gives is None:
            continue
        operation = told["paths"][route.path.removeprefix("/api")][route.method.lower()]
        names.append(operation["operationId"])
        assert f"`{route.right}`" in operation["description"]
        given = {each["name"]: each for each in operation["parameters"]}
        for name in re.findall(r"\{(\w+)\}", route.path):
            assert (given[name]["in"], given[name]["required"]) == ("path", True), route.path
        # What cannot be sent is no value.
        assert not [each for each in given.values() if "anyOf" in each["schema"]], route.path
        assert ("requestBody" in operation) == (route.method == "POST"), route.path
    assert len(names) == len(set(names)) > 20


def test_a_preview_leaves_out_nothing_that_it_was_told_to_look_for() -> None:
    about = {"why", "force"}
    assert set(PreviewForm.__struct_fields__) - about == {
        each.name for each in fields(Choice) if each.name != "ids"
    }


def test_no_number_is_taken_that_postgresql_cannot_hold() -> None:
    unbounded = [
        f"{path} {name}"
        for path, operations in description()["paths"].items()
        for operation in operations.values()
        for name, schema in taken(operation)
        if schema.get("type") == "integer" and schema.get("maximum", 1 << 64) > MAX_ID
    ]
    assert unbounded == []


def taken(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parameters of a call, and the fields of its form."""
    for each in operation["parameters"]:
        yield each["name"], each["schema"]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield from content["schema"]["properties"].items()


def test_every_reference_of_the_description_leads_somewhere() -> None:
    told = description()
    for reference in references(told):
        place: Any = told
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_no_answer_of_a_get_has_a_place_for_text() -> None:
    told = description()
    texts = [
        name
        for name, schema in told["components"]["schemas"].items()
        if "text" in schema.get("properties", {})
    ]
    assert texts == ["Text"]
    for path, operations in told["paths"].items():
        assert "Text" not in str(operations.get("get", {})), path
