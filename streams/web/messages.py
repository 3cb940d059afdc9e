"""A request and a response as the pages see them, whatever server stands before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import msgspec

FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `path` is decoded and below the mount, header names are in small letters.

    `peer` is the address at the other end of the socket, `ours` says that we listen there
    ourselves, and `native` is what the host application's framework made of the request.
    """

    method: str
    path: str
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    scheme: str = "http"
    peer: str | None = None
    ours: bool = False
    native: Any = None

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]

    def header(self, name: str) -> str:
        """The value of a header that may be there once.

        '' when it is absent, or there more often.
        """
        values = self.all(name)
        return values[0] if len(values) == 1 else ""

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies; of two with one name, neither."""
        pairs = [part.strip().partition("=") for part in "; ".join(self.all("cookie")).split(";")]
        names = [name for name, _, _ in pairs]
        return {name: value for name, _, value in pairs if names.count(name) == 1}

    @property
    def parameters(self) -> Mapping[str, str]:
        """The parameters of the query, the first of each name."""
        return _first(self.query)

    @property
    def form(self) -> Mapping[str, str]:
        """The fields of a posted form, the first of each name; {} when it is none."""
        if self.header("content-type").partition(";")[0].strip() != FORM:
            return {}
        return _first(self.body.decode("utf-8", errors="surrogateescape"))

    @property
    def wants_page(self) -> bool:
        """Whether a person's browser asks, rather than a program."""
        return "text/html" in self.header("accept")


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """A request that is not served.

    It has a status, one line that says what is wrong and what to do, and headers of its own.
    """

    def __init__(self, status: int, line: str, **headers: str) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = HTTPStatus(status), line, _named(headers)


def html(text: str, status: int = 200, **headers: str) -> Response:
    """A page."""
    return _typed(text.encode(), "text/html; charset=utf-8", status, headers)


def json(value: Any, status: int = 200, **headers: str) -> Response:
    """A value as JSON."""
    body = msgspec.json.encode(value, enc_hook=str)
    return _typed(body, "application/json; charset=utf-8", status, headers)


def text(value: str, status: int = 200, kind: str = "text/plain", **headers: str) -> Response:
    """Plain text."""
    return _typed(value.encode(), f"{kind}; charset=utf-8", status, headers)


def redirect(to: str, status: int = 303, **headers: str) -> Response:
    """Send a browser elsewhere; `to` is relative to the address that was asked for."""
    return Response(status, b"", {"Location": to, **_named(headers)})


def _first(text: str) -> dict[str, str]:
    try:
        # What is not UTF-8 is refused by `guard.check_parameters`, and never replaced in silence.
        pairs = parse_qsl(
            text, keep_blank_values=True, max_num_fields=100, errors="surrogateescape"
        )
    except ValueError:
        raise Refusal(400, "the query or form has more than 100 fields") from None
    return dict(reversed(pairs))


def _typed(body: bytes, kind: str, status: int, headers: Mapping[str, str]) -> Response:
    return Response(status, body, {"Content-Type": kind, **_named(headers)})


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-").title(): value for name, value in headers.items()}
