"""What a route is: its right, what it takes, what answers it; and which one answers a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from streams.type_errors import explain
from streams.web.guard import check_parameters
from streams.web.messages import Refusal, Request, Response
from streams.web.rights import Identity, Right

if TYPE_CHECKING:
    from streams.web.site import Site

P = TypeVar("P", bound=msgspec.Struct)

FORM_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to a route: who asks, and what was given.

    On a route for everybody nobody asks: None. `given` is the path's part and the query of a GET,
    or the path's part and the form of a POST.
    """

    site: Site
    request: Request
    route: Route
    identity: Identity | None
    given: Mapping[str, str]

    def parameters(self, kind: type[P]) -> P:
        """What was given, as this type.

        What is empty counts as not given. Refusal names what is wrong.
        """
        values = {name: value for name, value in self.given.items() if value and name != PART}
        try:
            return msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            name, expected = explain(error, kind)
            if expected == "expected only declared fields":
                unknown = next(name for name in values if name not in kind.__struct_fields__)
                known = ", ".join(kind.__struct_fields__) or "none"
                raise Refusal(
                    400, f"unknown parameter {unknown!r:.40}: expected one of {known}"
                ) from None
            if "RFC3339" in expected:
                expected = "expected a time like 2026-01-31T12:00:00Z"
            raise Refusal(400, f"{name!r} is {values.get(name, '')!r:.80}: {expected}") from None

    @property
    def who(self) -> Identity:
        """Who asks, on a route that needs a right."""
        assert self.identity is not None
        return self.identity

    @property
    def base(self) -> str:
        """The relative address of the first page."""
        depth = self.request.path.count("/") - 1
        return "../" * depth or "./"


Answer = Callable[[Call], Awaitable[Response]]

PART = "part"
"""The parameter with which the script asks for the part of a page that lives."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path; `right` None is for everybody.

    `long` names fields of a form that may be longer than a key, `most_bytes` bounds the whole body.
    `takes` and `gives` are the types of a call of the API.
    """

    method: str
    path: str
    right: Right | None
    answer: Answer
    about: str
    takes: type[msgspec.Struct] | None = None
    gives: Any = None
    long: frozenset[str] = field(default_factory=frozenset)
    most_bytes: int = FORM_BYTES

    def fits(self, path: str) -> Mapping[str, str] | None:
        """The parts of the path that have a name, or None when it is another path."""
        ours, theirs = self.path.split("/"), path.split("/")
        if len(ours) != len(theirs):
            return None
        named: dict[str, str] = {}
        for mine, other in zip(ours, theirs, strict=True):
            if mine.startswith("{") and other:
                named[mine[1:-1]] = other
            elif mine != other:
                return None
        return named

    @property
    def is_api(self) -> bool:
        """Whether it is for programs."""
        return self.path.startswith("/api/") or self.path.startswith("/metrics")


def find(routes: Sequence[Route], method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The route of a request; Refusal 404 or 405 when there is none. HEAD is a GET."""
    method = "GET" if method == "HEAD" else method
    at_path = [(route, named) for route in routes if (named := route.fits(path)) is not None]
    # A word that is a route of its own is nobody's name.
    at_path = [(route, named) for route, named in at_path if not named] or at_path
    for route, named in at_path:
        if route.method == method:
            check_parameters(named)
            return route, named
    if at_path:
        methods = {route.method for route, _ in at_path}
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        raise Refusal(405, f"{method[:10]} is not served here: expected {allowed}", allow=allowed)
    raise Refusal(404, "there is no such page")
