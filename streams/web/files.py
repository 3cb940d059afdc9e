"""The stylesheet, the script and the icon, for everybody: the login needs them."""

from __future__ import annotations

from streams.web import render
from streams.web.messages import Refusal, Response
from streams.web.routes import Call, Route

KINDS = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
YEAR = 365 * 86400


async def static(call: Call) -> Response:
    """One of the three; for a year where the address names its version."""
    name = call.given["file"]
    if name not in KINDS:
        raise Refusal(404, "there is no such file")
    version = render.version_of(name)
    kept = f"max-age={YEAR}, immutable" if call.given.get("v") == version else "no-cache"
    headers = {"Content-Type": KINDS[name], "Cache-Control": kept, "ETag": f'"{version}"'}
    if call.request.header("if-none-match") == headers["ETag"]:
        return Response(304, b"", headers)
    return Response(200, (render.FOLDER / "static" / name).read_bytes(), headers)


ROUTES = (Route("GET", "/static/{file}", None, static, "Stylesheet, script and icon."),)
