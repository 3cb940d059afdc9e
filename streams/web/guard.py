"""Which requests are let in at all: by Host, by origin, by size; and what every response carries.

A page of another origin can make a browser send us a form, but cannot make it say `Sec-Fetch-Site:
same-origin`, nor another Origin than its own. A name that an attacker owns can be made to resolve
to our address (DNS rebinding): the browser then believes that we are of one origin with the
attacker's page, but it sends that name as Host. IP addresses cannot be rebound.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from streams.web.messages import Refusal, Request, Response

FORWARDED = ("forwarded", "via", "x-real-ip")
LONGEST = 1024
"""Bytes of a parameter: as many as a key may have."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
        " connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer Chromium sends `Origin: null` with every form, and none would be taken.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every response, whatever its status; a response's own header of the same name wins."""


def guarded(response: Response) -> Response:
    """The response with the headers that every one carries."""
    return Response(response.status, response.body, {**HEADERS, **response.headers})


def check_host(request: Request, hosts: Collection[str]) -> None:
    """Refusal unless Host is an IP address, localhost or one of `hosts`."""
    given = request.header("host")
    name = host_name(given)
    if name is None:
        raise Refusal(400, f"Host is {given!r:.80}: expected one host name or address")
    known = {host.lower().rstrip(".") for host in hosts}
    if name == "localhost" or name in known or _is_address(name):
        return
    raise Refusal(421, f"Host is {name!r:.80}: expected an address, localhost or one of web.hosts")


def check_origin(request: Request, origins: Collection[str], *, bearer: bool) -> None:
    """Refusal unless a page of ours, or one of `origins`, sent this; or a program with a token."""
    site, origin = request.header("sec-fetch-site"), request.header("origin")
    many = len(request.all("sec-fetch-site")) > 1 or len(request.all("origin")) > 1
    known = {each.lower().rstrip("/") for each in origins}
    if not many and (site == "same-origin" or origin in known):
        return
    if not many and not site and origin and origin == own_origin(request):
        return
    if not many and not site and not origin:
        if bearer:
            return
        raise Refusal(403, "neither Sec-Fetch-Site nor Origin is there: send a token (web.tokens)")
    raise Refusal(403, "the form was sent by a page of another origin: nothing was done")


def check_parameters(parameters: Mapping[str, str], *, long: Collection[str] = ()) -> None:
    """Refusal for a value with NUL, or longer than a key may be.

    Those named in `long` have a limit of their own.
    """
    for name, value in parameters.items():
        size = len(value.encode("utf-8", errors="surrogatepass"))
        if name not in long and size > LONGEST:
            raise Refusal(400, f"{name!r:.40} has {size:,} bytes: expected at most {LONGEST:,}")
        if "\0" in value:
            raise Refusal(400, f"{name!r:.40} holds a NUL character, which no key or name can hold")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise Refusal(400, f"{name!r:.40} is not UTF-8")


def is_forwarded(request: Request) -> bool:
    """Whether a proxy passed it on: whoever really asks is not at the other end of the socket."""
    return any(name in FORWARDED or name.startswith("x-forwarded") for name, _ in request.headers)


def is_of_elsewhere(request: Request, hosts: Collection[str]) -> bool:
    """Whether a page of ours asks, and is neither of this machine nor of one of `hosts`.

    A proxy that names nobody sends our own address as Host; what the browser says passes it. A
    link on another site's page is not such a page.
    """
    if request.header("sec-fetch-site") != "same-origin":
        return False
    named = [_host_of(request.header(each)) for each in ("origin", "referer")]
    # Where a browser tells no address it says `null`.
    known = {"", "localhost", *(host.lower().rstrip(".") for host in hosts)}
    return any(name not in known and not _is_loopback(name) for name in named)


def own_origin(request: Request) -> str:
    """The origin that the request was sent to."""
    return f"{request.scheme}://{request.header('host').lower()}"


def host_name(given: str) -> str | None:
    """The host of a Host header without its port and brackets, in small letters.

    None when it is none.
    """
    try:
        parts = urlsplit(f"//{given}")
        _ = parts.port  # ValueError when it is no port
    except ValueError:
        return None
    if not given or parts.path or parts.query or parts.fragment or "@" in given:
        return None
    return (parts.hostname or "").rstrip(".") or None


def _host_of(address: str) -> str:
    """The host of a page's address; '' where there is none to read."""
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
