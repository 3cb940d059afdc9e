"""Who asks: this machine, a login, a proxy, a token, the host application; and nobody else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from streams.cli import cli
from streams.settings import Web
from streams.web import login, passwords
from streams.web.access import COOKIE, Access
from streams.web.messages import Refusal, Request
from streams.web.rights import ROLES, Identity, Right

SECRET = "s" * 32
PASSWORD = "correct horse battery"
LINE = passwords.line(PASSWORD)
HOST = ("host", "127.0.0.1")


def access(host: Any = None, **web: Any) -> Access:
    return Access(msgspec.convert(web, Web), host)


def ask(*headers: tuple[str, str], peer: str | None = "127.0.0.1", ours: bool = True) -> Request:
    return Request("GET", "/", headers=(HOST, *headers), peer=peer, ours=ours)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
async def test_local_is_this_machine_without_message_text(peer: str) -> None:
    identity = await access().identify(ask(peer=peer))
    assert identity is not None
    assert identity.rights == frozenset(Right) - {Right.TEXT}
    text = await access(local_text=True).identify(ask(peer=peer))
    assert text is not None and Right.TEXT in text.rights


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "testclient", "", None])
async def test_local_is_nobody_else(peer: str | None) -> None:
    with pytest.raises(Refusal, match="only this machine"):
        await access().identify(ask(peer=peer))


async def test_local_behind_a_proxy_would_be_open_to_the_world() -> None:
    for name in ("x-forwarded-for", "forwarded", "x-forwarded-host", "via"):
        with pytest.raises(Refusal, match="a proxy passed this on"):
            await access().identify(ask((name, "10.0.0.1")))
    # One that names nobody and says our own address as Host: the browser says where it is.
    ours = ("sec-fetch-site", "same-origin")
    for name in ("origin", "referer"):
        for page in ("https://ops.example", "https://10.0.0.1/outbox/"):
            with pytest.raises(Refusal, match="a proxy passed this on"):
                await access().identify(ask(ours, (name, page)))
            # A link on somebody's page, or a browser that says nothing of sites.
            for site in ([("sec-fetch-site", "cross-site")], []):
                assert await access().identify(ask(*site, (name, page))) is not None
        for page in (
            "http://localhost:8080",
            "http://127.0.0.1:6066/outbox/",
            "http://[::1]/",
            "https://[broken",
            "null",
        ):
            assert await access().identify(ask(ours, (name, page))) is not None
        own = access(hosts=["ops.example"])
        assert await own.identify(ask(ours, (name, "https://ops.example"))) is not None


async def test_a_login_lasts_until_the_password_line_changes() -> None:
    users = {"amy": {"password": LINE, "role": "operator"}}
    ours = access(access="users", users=users, secret=SECRET)
    cookie = await ours.log_in(ask(), "amy", PASSWORD)
    identity = await ours.identify(ask(("cookie", f"a=b; {COOKIE}={cookie}")))
    assert identity == Identity("amy", ROLES["operator"], "user")
    # Another process with the same secret knows it, whoever asks from wherever.
    assert await access(access="users", users=users, secret=SECRET).identify(
        ask(("cookie", f"{COOKIE}={cookie}"))
    )
    changed = {"amy": {"password": passwords.line(PASSWORD), "role": "operator"}}
    for other in (
        access(access="users", users=changed, secret=SECRET),
        access(access="users", users=users, secret="t" * 32),
        access(access="users", users={"bob": users["amy"]}, secret=SECRET),
    ):
        assert await other.identify(ask(("cookie", f"{COOKIE}={cookie}"))) is None
    # Two of one name are none: somebody put one beside ours.
    assert await ours.identify(ask(("cookie", f"{COOKIE}={cookie}; {COOKIE}={cookie}"))) is None
    assert await ours.identify(ask()) is None


def test_a_cookie_ends_and_cannot_be_changed() -> None:
    now = time.time()
    cookie = passwords.issue("amy", LINE, SECRET, now)
    assert passwords.name_in(cookie) == "amy"
    assert passwords.valid(cookie, "amy", LINE, SECRET, now + passwords.SESSION_SECONDS - 2)
    assert not passwords.valid(cookie, "amy", LINE, SECRET, now + passwords.SESSION_SECONDS + 1)
    name, until, mac = cookie.split(".")
    later = f"{name}.{int(until) + 9999}.{mac}"
    for forged in (
        later,
        f"{name}.{until}.",
        f"{name}.{until}",
        "",
        "..",
        f"{name}.x.{mac}",
        f"{name}.{until}.é",
    ):
        assert not passwords.valid(forged, "amy", LINE, SECRET, now), forged


async def test_failed_logins_delay_by_address_and_tell_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    def fits(password: str, known: str) -> bool:
        tried.append(known)
        return password == PASSWORD

    monkeypatch.setattr(passwords, "fits", fits)
    ours = access(access="users", users={"amy": {"password": LINE}}, secret=SECRET)
    for name in ("amy", "nobody", "amy", "nobody"):
        with pytest.raises(Refusal, match="the name or the password is wrong"):
            await ours.log_in(ask(), name, "wrong")
    # Whoever is not known costs as much as whoever is.
    assert len(tried) == 4
    with pytest.raises(Refusal, match="too many failed logins: wait") as refused:
        await ours.log_in(ask(), "amy", PASSWORD)
    assert refused.value.status == 429
    assert await ours.log_in(ask(peer="127.0.0.2"), "amy", PASSWORD)


async def test_failed_logins_behind_a_proxy_delay_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its address is everybody's."""
    monkeypatch.setattr(passwords, "fits", lambda password, known: password == PASSWORD)
    users = {"access": "users", "users": {"amy": {"password": LINE}}, "secret": SECRET}

    async def fail(ours: Access, name: str, *headers: tuple[str, str]) -> int:
        """How many tries it takes until it has to wait."""
        for count in range(9):
            with pytest.raises(Refusal) as refused:
                await ours.log_in(ask(*headers, peer="10.1.1.1"), name, "wrong")
            if refused.value.status == 429:
                return count
        raise AssertionError

    ours, stranger = access(**users), ("x-forwarded-for", "203.0.113.9")
    assert await fail(ours, "stranger", stranger) == 4
    amy = ask(("x-forwarded-for", "198.51.100.7"), peer="10.1.1.1")
    assert await ours.log_in(amy, "amy", PASSWORD)
    # Whom a proxy that nobody trusts passes on may have said so himself: the name counts.
    assert await fail(ours, "amy", stranger) == 4
    assert await fail(ours, "amy", ("x-forwarded-for", "198.51.100.7")) == 0

    ours = access(**users, trusted_proxies=["10.0.0.0/8"])
    assert await fail(ours, "amy", ("x-forwarded-for", "198.51.100.7, 203.0.113.9")) == 4
    assert await fail(ours, "bob", ("x-forwarded-for", "6.6.6.6"), stranger) == 0
    assert await fail(ours, "bob", ("x-forwarded-for", "203.0.113.9, 10.2.2.2")) == 0
    assert await ours.log_in(amy, "amy", PASSWORD)
    for nothing in ("10.2.2.2", "203.0.113.9, unknown", ""):
        assert await fail(ours, f"of {nothing}", ("x-forwarded-for", nothing)) == 4


async def test_failed_logins_at_once_delay_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fits(password: str, known: str) -> bool:
        tried.append(password)
        return False

    monkeypatch.setattr(passwords, "fits", fits)
    ours = access(access="users", users={"amy": {"password": LINE}}, secret=SECRET)
    many = [ours.log_in(ask(), "amy", f"guess {number}") for number in range(20)]
    refused = await asyncio.gather(*many, return_exceptions=True)
    assert len(tried) == 4
    assert [each.status for each in refused if isinstance(each, Refusal)] == [403] * 4 + [429] * 16


@pytest.mark.parametrize("password", [PASSWORD, "", "wrong", "x\0y"])
def test_a_password_fits_its_own_line(password: str) -> None:
    assert passwords.fits(password, LINE) == (password == PASSWORD)


def test_a_line_cannot_ask_for_all_memory() -> None:
    assert not passwords.fits("x", f"scrypt:30:8:1:{'0' * 32}:{'0' * 64}")


PROXY = {"access": "proxy", "trusted_proxies": ["10.0.0.0/8"], "proxy_secret": SECRET}
SAID = (("x-outbox-user", "amy"), ("x-outbox-secret", SECRET))


async def test_bytes_that_are_no_text_are_nobody_whoever_they_name() -> None:
    """An error for a name that is known would tell that it is."""
    users = {"amy": {"password": LINE, "role": "operator"}}
    tokens = {"ci": {"sha256": "0" * 64}}
    ours = access(access="users", users=users, secret=SECRET, tokens=tokens)
    for name in ("amy", "bob"):
        encoded = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
        cookie = ("cookie", f"{COOKIE}={encoded}.99999999999.\udcff")
        assert await ours.identify(ask(cookie)) is None
    assert await ours.identify(ask(("authorization", "Bearer \udcff"))) is None


async def test_a_proxy_says_who_asks() -> None:
    ours = access(**PROXY)
    assert await ours.identify(ask(*SAID, peer="10.1.1.1")) == Identity(
        "amy", ROLES["viewer"], "proxy"
    )
    admin = await ours.identify(ask(*SAID, ("x-outbox-role", "admin"), peer="10.1.1.1"))
    assert admin is not None and admin.rights == ROLES["admin"]


@pytest.mark.parametrize(
    "request_",
    [
        ask(*SAID, peer="192.168.0.1"),
        ask(*SAID, peer=None),
        ask(*SAID, peer="10.1.1.1", ours=False),  # a host application may have replaced the address
        ask(SAID[0], peer="10.1.1.1"),
        ask(SAID[1], peer="10.1.1.1"),
        ask(SAID[0], ("x-outbox-secret", "wrong"), peer="10.1.1.1"),
        ask(*SAID, SAID[0], peer="10.1.1.1"),
        ask(*SAID, SAID[1], peer="10.1.1.1"),
    ],
)
async def test_whoever_is_not_the_proxy_says_nothing(request_: Request) -> None:
    assert await access(**PROXY).identify(request_) is None


async def test_an_unknown_role_of_a_proxy_is_no_right() -> None:
    for roles in (
        [("x-outbox-role", "root")],
        [("x-outbox-role", "admin"), ("x-outbox-role", "admin")],
    ):
        identity = await access(**PROXY).identify(ask(*SAID, *roles, peer="10.1.1.1"))
        assert identity is not None and identity.rights == frozenset()


async def test_a_token_counts_beside_any_access_and_a_wrong_one_counts_for_nothing() -> None:
    tokens = {"grafana": {"sha256": hashlib.sha256(b"t0ken").hexdigest(), "role": "viewer"}}
    for ours in (
        access(tokens=tokens),
        access(lambda _: None, tokens=tokens),
        access(**PROXY, tokens=tokens),
    ):
        known = await ours.identify(ask(("authorization", "Bearer t0ken"), peer="9.9.9.9"))
        assert known == Identity("token grafana", ROLES["viewer"], "token")
        for wrong in ("Bearer other", "Bearer", "Basic t0ken", ""):
            # This machine, with a wrong token, is not let in as this machine.
            assert await ours.identify(ask(("authorization", wrong))) is None


async def test_a_header_of_the_application_or_the_proxy_hides_nobody() -> None:
    amy = Identity("amy", ROLES["support"], "host")
    bearer, basic = ("authorization", "Bearer a.jwt.of.theirs"), ("authorization", "Basic YTpi")
    assert await access(lambda _: amy).identify(ask(bearer, peer="9.9.9.9")) == amy
    known = await access(**PROXY).identify(ask(*SAID, basic, peer="10.1.1.1"))
    assert known is not None and known.how == "proxy"
    users = {"amy": {"password": LINE, "role": "operator"}}
    ours = access(access="users", users=users, secret=SECRET)
    cookie = passwords.issue("amy", LINE, SECRET, time.time())
    seen = await ours.identify(ask(basic, ("cookie", f"{COOKIE}={cookie}")))
    assert seen is not None and seen.name == "amy"


async def test_the_host_application_says_who_asks() -> None:
    amy = Identity("amy", ROLES["support"], "host")

    async def later(request: Request) -> Identity | None:
        return amy if request.native == "native" else None

    assert await access(lambda _: amy).identify(ask(peer="9.9.9.9")) == amy
    assert await access(later).identify(ask()) is None


async def test_the_commands_print_lines_that_let_somebody_in() -> None:
    run = CliRunner().invoke
    printed = run(
        cli, ["web", "password", "amy", "--role", "support"], input=f"{PASSWORD}\n"
    ).output
    user = yaml.safe_load(printed)
    ours = access(access="users", users=user, secret=SECRET)
    cookie = await ours.log_in(ask(), "amy", PASSWORD)
    assert await ours.identify(ask(("cookie", f"{COOKIE}={cookie}"))) == Identity(
        "amy", ROLES["support"], "user"
    )
    drawn = run(cli, ["web", "token", "grafana"])
    token = drawn.stderr.rpartition(" ")[2].strip()
    known = await access(tokens=yaml.safe_load(drawn.stdout)).identify(
        ask(("authorization", f"Bearer {token}"))
    )
    assert known == Identity("token grafana", ROLES["viewer"], "token")
    for arguments, text, line in (
        (["password", "amy"], "short\n", "the password has 5 characters: expected at least 12"),
        (["password", "a: b"], f"{PASSWORD}\n", "the name is 'a: b': expected a plain word"),
    ):
        refused = run(cli, ["web", *arguments], input=text)
        assert line in str(refused.exception)


@pytest.mark.parametrize(
    ("asked", "leads"),
    [
        ("messages/orders:12", True),
        ("conversation?topic=t&key=" + "%D0%B6" * 341, True),
        ("dead/?since=2026-01-31T12:00:00Z", True),
        ("dead/?key=\u0436", False),  # a header holds no such character
        ("//evil.example", False),
        ("https://evil.example", True),  # behind ./ it is a path of ours
        ("\\evil.example", False),
        ("dead/?" + "a" * 9000, False),
    ],
)
def test_a_login_leads_below_ours_and_nowhere_else(asked: str, leads: bool) -> None:
    call = SimpleNamespace(given={"next": asked})
    assert login._next(call) == (asked if leads else "")  # type: ignore[arg-type]
    assert {"next"} <= {name for route in login.ROUTES[:2] for name in route.long}
