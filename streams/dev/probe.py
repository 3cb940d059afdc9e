"""What a worker says about itself on its health page."""

from __future__ import annotations

from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import msgspec

# Loopback only: a proxy from the environment must not see these.
_OPENER = build_opener(ProxyHandler({}))


class Health(msgspec.Struct, frozen=True):
    """The answer of /health/ready."""

    ready: bool = False
    partitions: dict[str, list[int]] = {}


def health(web: str, seconds: float = 1.0) -> Health:
    """The answer of the worker whose pages are at `web`.

    One that does not answer in time is not ready.
    """
    try:
        with _OPENER.open(f"{web}health/ready", timeout=seconds) as response:
            body = response.read()
    except HTTPError as error:
        with error:
            body = _body(error)
    except (URLError, OSError):
        return Health()
    try:
        return msgspec.json.decode(body, type=Health)
    except msgspec.DecodeError:
        return Health()


def _body(error: Any) -> bytes:
    """A worker that is not ready answers 503, with its reasons."""
    try:
        return bytes(error.read())
    except OSError:
        return b""
