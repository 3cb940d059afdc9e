"""What a person may do to a message or conversation: each a POST, written down with who and why."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from sqlalchemy import Connection

from streams import operate
from streams.message_id import MessageId, parts_of, read_name
from streams.operate.replay import note
from streams.web import messages, render
from streams.web.messages import Refusal, Response
from streams.web.page import shell
from streams.web.pages.parameters import Name, Topic
from streams.web.rights import Right
from streams.web.routes import FORM_BYTES, Call, Route

EDIT_BYTES = 3_000_000
"""A form with a payload; a larger one goes by `streams dead replay --payload`."""

Why = Annotated[
    str, msgspec.Meta(min_length=1, max_length=2000, description="the reason, written down")
]


class ReleaseForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which conversation goes on without the dead messages that hold it, and why."""

    topic: Topic
    key: Annotated[str, msgspec.Meta(min_length=1)]
    why: Why


class MessageForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which message, and why."""

    message: Name
    why: Why


class TextForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose text, and why somebody looks."""

    message: Name
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class EditForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which message, the JSON that it is to be, and why; `confirmed`: the difference was seen.

    `compared` is the SHA-256 of the text that it was seen from: if that is another one now, nothing
    is done.
    """

    message: Name
    payload: str
    why: Why
    confirmed: bool = False
    compared: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None


class Done(msgspec.Struct, frozen=True):
    """What was done: the messages it was done to."""

    act: str
    messages: list[MessageId]


class Text(msgspec.Struct, frozen=True):
    """What stands in a message, as it counts: that of its last replay."""

    message: MessageId
    text: str


async def release(call: Call) -> Response:
    """Let a conversation go on past the dead messages that hold it."""
    form = call.parameters(ReleaseForm)
    operator = operate.Operator(call.who.name, form.why)
    released = await call.site.acts.run(
        lambda connection: operate.release(connection, form.key, operator, topic=form.topic)
    )
    source, _ = parts_of(released[0])
    back = render.link("conversation", topic=form.topic, key=form.key, source=source).unescape()
    return _done(call, Done("release", released), back)


async def replay(call: Call) -> Response:
    """Send one dead message again."""
    return await _one(
        call,
        "replay",
        lambda connection, ids, operator, choice: operate.replay(
            connection, ids, operator, choice, force=True
        ),
    )


async def discard(call: Call) -> Response:
    """Give one dead message up for good."""
    return await _one(call, "discard", operate.discard)


async def read_text(call: Call) -> Response:
    """A message's text, once it is written down who looks."""
    form = call.parameters(TextForm)
    name = _name(form.message)
    operator = operate.Operator(call.who.name, form.why or None)

    def read(connection: Connection) -> str:
        text = operate.payload(connection, name)
        connection.rollback()
        with connection.begin():
            note(connection, operator, "read text", [name], {})
        return text

    text = await call.site.acts.run(read)
    if call.route.is_api:
        return messages.json(Text(name, text))
    return _page(call, "text.html", name, text=_laid_out(text), rights=call.who.rights)


async def edit(call: Call) -> Response:
    """Replay one dead message with another payload; a person sees the difference first."""
    form = call.parameters(EditForm)
    name, site = _name(form.message), call.site
    if Right.OPERATE not in call.who.rights:
        raise Refusal(
            403, f"this needs the right operate, which {call.who.name!r:.60} does not have"
        )
    payload, most = form.payload.encode(), site.settings.outbox.max_bytes
    operator = operate.Operator(call.who.name, form.why)
    registry = await site.registry()
    if call.route.is_api or form.confirmed:
        await site.acts.run(
            lambda connection: operate.edit(
                connection, name, payload, registry, most, operator, compared=form.compared
            )
        )
        return _done(call, Done("replay", [name]), f"messages/{name}")
    old, new = await site.acts.run(
        lambda connection: operate.compare(connection, name, payload, registry, most, operator)
    )
    before, after = _laid_out(old).splitlines(), _laid_out(new).splitlines()
    changes = list(difflib.ndiff(before, after))
    return _page(
        call,
        "difference.html",
        name,
        changes=changes,
        payload=form.payload,
        compared=hashlib.sha256(old.encode()).hexdigest(),
        why=form.why,
        same=before == after,
    )


def _page(call: Call, template: str, name: MessageId, **values: Any) -> Response:
    middle = render.page(template, name=name, base=call.base, **values)
    return messages.html(
        shell(call, title=f"Text of message {name}", nav="messages", middle=middle)
    )


def _laid_out(text: str) -> str:
    """Its JSON on several lines; numbers and texts stay as they were written."""
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text


async def _one(call: Call, act: str, work: Callable[..., Any]) -> Response:
    form = call.parameters(MessageForm)
    name = _name(form.message)
    operator = operate.Operator(call.who.name, form.why)
    choice = operate.Choice(ids=(name,))

    def run(connection: Connection) -> int:
        ids = operate.plan(connection, choice)
        return sum(step.done for step in work(connection, ids, operator, choice))

    if not await call.site.acts.run(run):
        raise Refusal(409, f"message {name} is no longer dead: nothing was done")
    return _done(call, Done(act, [name]), f"messages/{name}")


def _done(call: Call, done: Done, back: str) -> Response:
    """As JSON for a program; a person is led to the page that shows it."""
    return messages.json(done) if call.route.is_api else messages.redirect(call.base + back)


def _name(text: str) -> MessageId:
    try:
        return read_name(text)
    except ValueError:
        raise Refusal(
            400, f"'message' is {text!r:.40}: expected an id of at most 2^63 - 1"
        ) from None


def _both(
    path: str,
    right: Right,
    answer: Any,
    about: str,
    takes: Any,
    gives: Any,
    most_bytes: int = FORM_BYTES,
) -> tuple[Route, Route]:
    """The route of a form, and that of the API."""
    limits: dict[str, Any] = {"long": frozenset({"why", "payload"}), "most_bytes": most_bytes}
    return (
        Route("POST", path, right, answer, about, **limits),
        Route("POST", f"/api{path}", right, answer, about, takes, gives, **limits),
    )


ROUTES: tuple[Route, ...] = (
    *_both(
        "/conversation/release",
        Right.OPERATE,
        release,
        "Let a held conversation go on.",
        ReleaseForm,
        Done,
    ),
    *_both(
        "/messages/{message}/replay",
        Right.OPERATE,
        replay,
        "Send one dead message again.",
        MessageForm,
        Done,
    ),
    *_both(
        "/messages/{message}/discard",
        Right.DISCARD,
        discard,
        "Give one dead message up.",
        MessageForm,
        Done,
    ),
    *_both(
        "/messages/{message}/edit",
        Right.TEXT,
        edit,
        "Replay one dead message with another payload.",
        EditForm,
        Done,
        most_bytes=EDIT_BYTES,
    ),
    *_both("/messages/{message}/text", Right.TEXT, read_text, "A message's text.", TextForm, Text),
)
