"""Who asks: this machine, somebody who logged in, a proxy that says who, a token, or the host.

Nothing is kept: a session is a signed cookie (`streams.web.passwords`), and what a proxy says
counts for the request that it says it with.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import inspect
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from streams.settings import Web
from streams.web import passwords
from streams.web.guard import LONGEST, is_forwarded, is_of_elsewhere
from streams.web.messages import Refusal, Request
from streams.web.passwords import in_bytes
from streams.web.rights import ROLES, Identity, Right

HostAccess = Callable[[Request], "Identity | Awaitable[Identity | None] | None"]
"""What an application that mounts the pages may give: who asks, from its own request (`native`)."""

COOKIE = "outbox_session"
USER, ROLE, SECRET = "x-outbox-user", "x-outbox-role", "x-outbox-secret"
"""Headers of a proxy: who asks, with which role, and the secret that only the proxy knows."""

FREE_FAILURES = 3
LONGEST_DELAY = 60.0
REMEMBERED = 10_000  # addresses whose failures are remembered


class Access:
    """How whoever asks is known, as `web` in the settings says, or `host` where we are mounted."""

    def __init__(self, web: Web, host: HostAccess | None = None) -> None:
        self._web, self._host = web, host
        self._machine = Identity(f"local@{socket.gethostname()}", _local_rights(web), "local")
        self._networks = [ipaddress.ip_network(proxy) for proxy in web.trusted_proxies]
        self._tokens = {token.sha256: name for name, token in web.tokens.items()}
        self._failures = _Failures()
        self._hashing = asyncio.Lock()

    @property
    def has_login(self) -> bool:
        """Whether there is a page to log in on."""
        return self._host is None and self._web.access == "users"

    async def identify(self, request: Request) -> Identity | None:
        """Who asks, None when nobody is known; Refusal for what must not be served at all."""
        if request.all("authorization"):
            by_token = self._by_token(request)
            # The header may be the application's own, or the proxy's, who say who asks.  But from
            # this machine anybody comes in: not with a token that is none.
            anybody = self._host is None and self._web.access == "local"
            if by_token is not None or anybody:
                return by_token
        if self._host is not None:
            identity = self._host(request)
            return await identity if inspect.isawaitable(identity) else identity
        by_access = {"local": self._by_machine, "users": self._by_cookie, "proxy": self._by_proxy}
        return by_access[self._web.access](request)

    async def log_in(self, request: Request, name: str, password: str) -> str:
        """The cookie for whoever knows the password.

        Refusal when it is wrong, or tried too often.
        """
        client = self._client(request, name)
        self._check_delay(client)
        user = self._web.users.get(name)
        known = user.password if user else passwords.NOBODY
        async with self._hashing:
            # Others from there may have failed while this one waited.
            self._check_delay(client)
            right = await asyncio.to_thread(passwords.fits, password, known)
            if user is None or not right:
                self._failures.add(client, time.monotonic())
                raise Refusal(403, "the name or the password is wrong")
        self._failures.forget(client)
        return passwords.issue(name, known, self._web.secret or "", time.time())

    def _client(self, request: Request, name: str) -> str:
        """Whose failed logins count together: those of one address.

        Behind a proxy everybody has the proxy's. One of `web.trusted_proxies` is believed whom it
        passes on; with another one those for one name count together, or a stranger's would delay
        everybody.
        """
        peer = request.peer or ""
        if not is_forwarded(request):
            return peer
        if self._trusts(peer):
            hops = ",".join(request.all("x-forwarded-for")).split(",")
            # Each proxy adds whom it heard: what stands before the first stranger is his own word.
            for hop in reversed(hops):
                if (address := _address(hop.strip())) is None:
                    break
                if not self._trusts(hop.strip()):
                    return str(address)
        return f"{peer} {name[:LONGEST]}"

    def _trusts(self, peer: str | None) -> bool:
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)

    def _check_delay(self, client: str) -> None:
        if (seconds := self._failures.delay(client, time.monotonic())) > 0:
            raise Refusal(429, f"too many failed logins: wait {seconds:.0f} s")

    def _by_machine(self, request: Request) -> Identity:
        known = (*self._web.hosts, *(urlsplit(each).hostname or "" for each in self._web.origins))
        if is_forwarded(request) or is_of_elsewhere(request, known):
            raise Refusal(
                403,
                "a proxy passed this on, and web.access is local, which would let the world in:"
                " set web.access to users or proxy",
            )
        if not _is_loopback(request.peer):
            raise Refusal(
                403,
                "web.access is local: only this machine is served, set web.access to users or"
                " proxy",
            )
        return self._machine

    def _by_cookie(self, request: Request) -> Identity | None:
        cookie = request.cookies.get(COOKIE, "")
        name = passwords.name_in(cookie) if cookie else None
        user = self._web.users.get(name) if name else None
        if not name or not user:
            return None
        if not passwords.valid(cookie, name, user.password, self._web.secret or "", time.time()):
            return None
        return Identity(name, ROLES[user.role], "user")

    def _by_proxy(self, request: Request) -> Identity | None:
        """A header counts from a trusted address, on a socket of ours, once, with the secret.

        A header that is there twice counts as none.
        """
        if not request.ours or not self._trusts(request.peer):
            return None
        secret, name = request.header(SECRET), request.header(USER)
        known = self._web.proxy_secret or ""
        if not name or not hmac.compare_digest(in_bytes(secret), in_bytes(known)):
            return None
        roles = request.all(ROLE)
        role = roles[0] if len(roles) == 1 else self._web.proxy_role if not roles else ""
        return Identity(name[:200], ROLES.get(role, frozenset()), "proxy")

    def _by_token(self, request: Request) -> Identity | None:
        scheme, _, token = request.header("authorization").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        # A lookup by the hash tells nothing about the token by the time that it takes.
        name = self._tokens.get(hashlib.sha256(in_bytes(token.strip())).hexdigest())
        return (
            Identity(f"token {name}", ROLES[self._web.tokens[name].role], "token") if name else None
        )


class _Failures:
    """Failed logins by client, which is an address nearly always.

    The fourth one in a row costs a second, each further one twice that.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def delay(self, client: str, now: float) -> float:
        """Seconds until this client may try again."""
        count, last = self._known.get(client, (0, now))
        if count <= FREE_FAILURES:
            return 0.0
        return last + min(LONGEST_DELAY, 2.0 ** min(count - FREE_FAILURES, 10) / 2) - now

    def add(self, client: str, now: float) -> None:
        self._known[client] = (self._known.pop(client, (0, now))[0] + 1, now)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def forget(self, client: str) -> None:
        self._known.pop(client, None)


def _local_rights(web: Web) -> frozenset[Right]:
    return frozenset(Right) if web.local_text else frozenset(Right) - {Right.TEXT}


def _is_loopback(peer: str | None) -> bool:
    address = _address(peer)
    return address is not None and address.is_loopback


def _address(peer: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
