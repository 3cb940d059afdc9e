"""Logging in and out, where `web.access` is users."""

from __future__ import annotations

import re

from streams.web import messages, page
from streams.web.access import COOKIE
from streams.web.messages import Refusal, Response
from streams.web.passwords import SESSION_SECONDS
from streams.web.render import page as rendered
from streams.web.routes import Call, Route

# An address below ours, and no other: it is written behind `./`.
_BELOW = re.compile(r"[A-Za-z0-9][A-Za-z0-9/._:-]*(\?[!-\[\]-~]*)?")
_LONGEST = 8192  # a key of a thousand bytes takes three times as many in an address


async def form(call: Call) -> Response:
    """The page to log in on."""
    _check(call)
    return messages.html(_form(call, ""))


async def log_in(call: Call) -> Response:
    """Check name and password, and leave a cookie."""
    _check(call)
    try:
        cookie = await call.site.access.log_in(
            call.request, call.given.get("name", ""), call.given.get("password", "")
        )
    except Refusal as refusal:
        return messages.html(_form(call, refusal.line), refusal.status)
    # Of HTTPS before a proxy only the browser knows: it says so itself.
    https = call.request.scheme == "https" or call.request.header("origin").startswith("https://")
    return messages.redirect(
        f"./{_next(call)}", set_cookie=_cookie(cookie, SESSION_SECONDS, secure=https)
    )


async def log_out(call: Call) -> Response:
    """Take the cookie away."""
    _check(call)
    return messages.redirect("./login", set_cookie=_cookie("", 0, secure=False))


def _cookie(value: str, seconds: int, *, secure: bool) -> str:
    """The cookie as a header says it, without a path.

    So it counts for the folder that the browser knows us in, whatever proxies make of it.
    """
    return f"{COOKIE}={value}; Max-Age={seconds}; HttpOnly; SameSite=Lax" + (
        "; Secure" if secure else ""
    )


def _next(call: Call) -> str:
    asked = call.given.get("next", "")
    return asked if len(asked) <= _LONGEST and _BELOW.fullmatch(asked) else ""


def _check(call: Call) -> None:
    if not call.site.access.has_login:
        raise Refusal(404, "nobody logs in here: web.access is not users")


def _form(call: Call, line: str) -> str:
    middle = rendered("login.html", line=line, next=_next(call), base=call.base)
    return page.shell(call, title="Log in", middle=middle)


_NEXT = frozenset({"next"})

ROUTES = (
    Route("GET", "/login", None, form, "The page to log in on.", long=_NEXT),
    Route("POST", "/login", None, log_in, "Log in with name and password.", long=_NEXT),
    Route("POST", "/logout", None, log_out, "Log out."),
)
