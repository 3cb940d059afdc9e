"""What the API takes and gives, as OpenAPI 3.1, made from the same types that it is made with."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from streams.web import messages
from streams.web.messages import Response
from streams.web.rights import Right
from streams.web.routes import Call, Route

DESCRIBED: list[Route] = []
"""The whole table of routes, which this one is in itself."""

REF = "#/components/schemas/{name}"


class Problem(msgspec.Struct):
    """What is wrong, in one line."""

    error: str


async def answer(call: Call) -> Response:
    """The description."""
    return messages.json(description())


@cache
def description() -> dict[str, Any]:
    """The whole API."""
    calls = [
        route for route in DESCRIBED if route.path.startswith("/api/") and route.gives is not None
    ]
    kinds = (
        [route.gives for route in calls]
        + [route.takes for route in calls if route.takes]
        + [Problem]
    )
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    by_kind = dict(zip(map(str, kinds), schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in calls:
        taken = components.get(route.takes.__name__, {}) if route.takes else {}
        paths.setdefault(route.path.removeprefix("/api"), {})[route.method.lower()] = _operation(
            route, taken, by_kind
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "outbox-streams",
            "version": version("outbox-streams"),
            "description": (
                "What the operators' pages show and do. Message text is in no answer of a GET."
                " A value that is empty counts as not given."
            ),
        },
        "servers": [{"url": "./"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(route: Route, taken: dict[str, Any], by_kind: dict[str, Any]) -> dict[str, Any]:
    named = {part[1:-1] for part in route.path.split("/") if part.startswith("{")}
    required = set(taken.get("required", ()))
    properties = {name: _given(schema) for name, schema in taken.get("properties", {}).items()}
    problem = {"description": "What is wrong.", "content": _json(by_kind[str(Problem)])}
    path = route.path.removeprefix("/api").replace("/", "_").translate(_PLAIN)
    operation: dict[str, Any] = {
        "summary": route.about,
        "operationId": f"{route.method.lower()}{path}",
        "description": f"Needs the right `{route.right}`.",
        "parameters": [
            {
                "name": name,
                "in": "path" if name in named else "query",
                "required": name in named or (name in required and route.method == "GET"),
                "schema": schema,
            }
            for name, schema in properties.items()
            if name in named or route.method == "GET"
        ],
        "responses": {
            "200": {"description": "Found.", "content": _json(by_kind[str(route.gives)])},
            **dict.fromkeys(_REFUSED + _REFUSED_BODY * (route.method == "POST"), problem),
        },
    }
    if route.method == "POST":
        fields = {name: schema for name, schema in properties.items() if name not in named}
        form = {"type": "object", "properties": fields, "required": sorted(required - named)}
        operation["requestBody"] = {
            "content": {"application/x-www-form-urlencoded": {"schema": form}}
        }
    return operation


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value as it can be sent: a query or a form has no null, it leaves out."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema = {**{key: value for key, value in schema.items() if key != "anyOf"}, **kinds[0]}
    return {key: value for key, value in schema.items() if (key, value) != ("default", None)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_REFUSED = ("400", "401", "403", "404", "409", "421", "500", "503")
_REFUSED_BODY = ("408", "413")

_PLAIN = str.maketrans("", "", "{}")

ROUTE = Route("GET", "/api/openapi.json", Right.VIEW, answer, "This description.")
