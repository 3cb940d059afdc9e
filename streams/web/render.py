"""Pages from Jinja's templates: everything escaped, what is not printable made visible."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from streams.figures import histogram
from streams.message_id import MessageId, parts_of
from streams.operate.meaning import meaning
from streams.terminal import printable, printable_lines
from streams.web import charts

FOLDER = Path(__file__).parent
MANY = 80  # characters of a key or an error in a list


def page(template: str, **values: Any) -> str:
    """A template with these values."""
    return _environment().get_template(template).render(values)


def etag(text: str) -> str:
    """A name for exactly this text."""
    return f'"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"'


@cache
def version_of(file: str) -> str:
    """A name for what a static file holds, so that browsers keep it until it changes."""
    return hashlib.blake2b((FOLDER / "static" / file).read_bytes(), digest_size=6).hexdigest()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(
        when=when,
        as_of=as_of,
        link=link,
        raw=raw,
        shell=shlex.quote,
        meaning=meaning,
        message_link=message_link,
        version_of=version_of,
        charts=charts,
    )
    for name, filter_ in (
        ("number", number),
        ("seconds", seconds),
        ("bound", bound),
        ("bytes", bytes_),
        ("short", short),
        ("prose", prose),
        ("ticked", ticked),
        ("sentence", sentence),
        ("plain", plain),
        ("path", path),
    ):
        environment.filters[name] = filter_
    return environment


def _visible(value: Any) -> Any:
    """The value as it is shown, which every expression goes through.

    Escape sequences and bidirectional controls are shown as such.
    """
    if isinstance(value, Markup):
        return value
    if value is None:
        return ""
    return printable(value) if isinstance(value, str) else value


def when(moment: datetime | None) -> Markup:
    """A time: UTC for whoever has no script; the script shows how long ago, and the local time."""
    if moment is None:
        return Markup('<span class="none">unknown</span>')
    utc = moment.astimezone(UTC)
    shown = utc.strftime("%Y-%m-%d %H:%M:%S")
    # Nothing of it is anybody's text: no need to escape it, of a hundred in a page.
    at = utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup(f'<time datetime="{at}">{shown} UTC</time>')


def as_of(moment: datetime) -> Markup:
    """When the figures of a page were read; the script keeps it."""
    utc = moment.astimezone(UTC)
    shown = utc.strftime("%H:%M:%S")
    return Markup('<time id="as-of" datetime="{}">{} UTC</time>').format(
        utc.isoformat(timespec="milliseconds"), shown
    )


def number(value: float | None) -> str:
    """A count with thousands separated, or one digit of a small rate."""
    if value is None:
        return "unknown"
    if isinstance(value, int) or value >= 10 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if value >= 1 else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """A duration as a person says it, two units at most."""
    if value is None:
        return "unknown"
    # A clock that was set back says less than nothing.
    value = max(0.0, value)
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    for size, unit, smaller, name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if value >= size:
            rest = int(value % size // smaller)
            return f"{int(value // size)} {unit}" + (f" {rest} {name}" if rest else "")
    raise AssertionError(value)


def bound(value: float | None) -> str:
    """What a percentile says: a duration at most, or more than the last bound of the histogram."""
    if value is None:
        return "unknown"
    if math.isinf(value):
        return f"more than {seconds(histogram.BOUNDS[-2])}"
    return f"at most {seconds(value)}"


def bytes_(value: int | None) -> str:
    """A size in the unit that fits."""
    if value is None:
        return "unknown"
    size = float(value)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def short(text: str | None, most: int = MANY) -> Markup:
    """A text cut to fit a list, whole in its title."""
    if text is None:
        return Markup("")
    visible = printable(text)
    if len(visible) <= most:
        return escape(visible)
    return Markup('<span title="{}">{}…</span>').format(visible[:1000], visible[: most - 1])


def prose(text: str) -> Markup:
    """Text with its lines kept, all else made visible."""
    return escape(printable_lines(text))


def raw(text: str) -> Markup:
    """A value of a form, which comes back as it is: it is escaped, and nothing else."""
    return escape(text)


def sentence(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def plain(value: Any) -> str:
    """A value of JSON as it is written there, a text as it is."""
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def ticked(text: str) -> Markup:
    """Words with `commands` in them."""
    parts = printable(text.rstrip(".")).split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def path(part: str) -> str:
    """One part of a path."""
    return quote(part, safe="")


def link(where: str, given: Mapping[str, Any] | None = None, **more: Any) -> Markup:
    """An address with a query; what is None is left out."""
    values = {
        name: value
        for name, value in {**(given or {}), **more}.items()
        if value not in (None, "", False)
    }
    query = urlencode({name: _said(value) for name, value in values.items()})
    return escape(f"{where}?{query}" if query else where)


def message_link(base: str, name: MessageId) -> Markup:
    """A link to one message."""
    parts_of(name)
    return Markup('<a class="id" href="{}messages/{}">{}</a>').format(
        base, quote(str(name), safe=":"), name
    )


def _said(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return "1" if value is True else str(value)
