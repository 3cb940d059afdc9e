"""One answer for all who ask: what an act throws away, and what it leaves to whoever waits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time

import pytest

from streams.settings import load
from streams.web import passwords
from streams.web.messages import FORM, Request, Response
from streams.web.shared import FRESH_SECONDS, WINDOW_SECONDS, Answer, Budget, Shared
from streams.web.site import Site


class Works:
    """Work that is begun when somebody asks, and done when the test says so."""

    def __init__(self) -> None:
        self.begun: list[asyncio.Future[str]] = []

    def __call__(self) -> asyncio.Future[str]:
        self.begun.append(asyncio.get_running_loop().create_future())
        return self.begun[-1]

    async def asked(self, shared: Shared, works: int) -> asyncio.Task[Answer[str]]:
        """Somebody who waits for an answer, once so much work was begun."""
        waiter = asyncio.ensure_future(shared.get("page", self))
        await asyncio.sleep(0)
        assert len(self.begun) == works
        return waiter


@pytest.mark.parametrize(
    ("cost", "seconds"), [(0.001, 1.0), (0.01, 1.0), (0.015, 1.5), (0.022, 2.2), (0.2, 3.0)]
)
def test_what_costs_much_is_fresh_for_longer_and_takes_its_share_alone(
    cost: float, seconds: float
) -> None:
    """`cost` is what a second of looking takes, each answer being made anew once a second."""
    now = spent = 0.0
    budget = Budget(lambda: spent, lambda: now)
    fresh = budget.seconds
    for _ in range(20):
        spent += cost * WINDOW_SECONDS / fresh
        now += WINDOW_SECONDS
        fresh = budget.seconds
    assert fresh == pytest.approx(seconds, rel=0.01)
    now += 3600
    assert budget.seconds == FRESH_SECONDS, "nobody looked for an hour"


async def test_an_act_meanwhile_leaves_a_first_look_its_answer() -> None:
    shared, works = Shared(), Works()
    first = await works.asked(shared, 1)
    shared.renew()
    works.begun[0].set_result("as it was")
    assert (await first).value == "as it was"
    assert (await first).why_old is None


async def test_whoever_asks_after_an_act_sees_what_came_of_it() -> None:
    shared, works = Shared(), Works()
    before = await works.asked(shared, 1)
    shared.renew()
    after = await works.asked(shared, 2)
    # The one that was begun before may end after the other: it changes nothing then.
    works.begun[1].set_result("after")
    assert (await after).value == "after"
    works.begun[0].set_result("before")
    assert (await before).value in ("before", "after")
    assert (await shared.get("page", works)).value == "after"
    assert len(works.begun) == 2
    shared.renew()
    third = await works.asked(shared, 3)
    works.begun[2].set_result("later")
    assert (await third).value == "later"


async def test_what_was_begun_before_an_act_is_not_what_came_of_it() -> None:
    shared, works = Shared(), Works()
    before = await works.asked(shared, 1)
    shared.renew()
    works.begun[0].set_result("before")
    await before
    after = await works.asked(shared, 2)
    works.begun[1].set_result("after")
    assert (await after).value == "after"


async def test_an_error_from_before_an_act_is_tried_again() -> None:
    shared, works = Shared(), Works()
    before = await works.asked(shared, 1)
    works.begun[0].set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await before
    with pytest.raises(ValueError, match="broken"):
        await shared.get("page", works)
    assert len(works.begun) == 1
    shared.renew()
    after = await works.asked(shared, 2)
    works.begun[1].set_result("mended")
    assert (await after).value == "mended"


async def test_many_acts_leave_the_last_figures_their_age() -> None:
    shared, works = Shared(), Works()
    first = await works.asked(shared, 1)
    works.begun[0].set_result("figures")
    await first
    for _ in range(700):
        shared.renew()
    last = shared.last("page")
    assert last is not None and last.age < 60


async def test_what_nobody_has_asked_for_of_late_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, now = Shared(), time.monotonic()
    for number in range(20):
        work = asyncio.get_running_loop().create_future()
        work.set_result("large")
        await shared.get(number, lambda work=work: work)  # type: ignore[misc]
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert shared.last(3) is None and len(shared._entries) == 20
    works = Works()
    waiter = await works.asked(shared, 1)
    assert list(shared._entries) == ["page"]
    works.begun[0].set_result("new")
    assert (await waiter).value == "new"


@pytest.fixture
def site() -> Site:
    """Pages of a database that is asked nothing."""
    amy = {"password": passwords.line("right"), "role": "operator"}
    token = {"sha256": hashlib.sha256(b"operator").hexdigest(), "role": "operator"}
    environ = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "STREAMS_WEB__TOKENS": json.dumps({"operator": token}),
        "STREAMS_WEB__ACCESS": "users",
        "STREAMS_WEB__USERS": json.dumps({"amy": amy}),
        "STREAMS_WEB__SECRET": "x" * 40,
    }
    return Site(load(environ=environ))


async def post(site: Site, path: str, body: bytes, *headers: tuple[str, str]) -> Response:
    given = [("host", "127.0.0.1"), ("content-type", FORM), *headers]
    return await site.answer(Request("POST", path, headers=given, body=body, peer="127.0.0.1"))


async def test_a_wrong_login_and_a_refused_act_renew_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[str] = []
    monkeypatch.setattr(site.shared, "renew", lambda: renewed.append("renewed"))
    own, token = ("sec-fetch-site", "same-origin"), ("authorization", "Bearer operator")
    assert (await post(site, "/login", b"name=amy&password=wrong", own)).status == 403
    assert (await post(site, "/logout", b"", own)).status == 303
    assert (await post(site, "/messages/1/replay", b"why=x", own)).status == 401
    assert (await post(site, "/messages/1/discard", b"why=x", token)).status == 403
    assert (await post(site, "/messages/1/replay", b"", token)).status == 400
    assert renewed == []
    await site.close()
