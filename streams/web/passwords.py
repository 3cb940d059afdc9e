"""Passwords as scrypt lines, and the cookie that a login leaves: nothing is kept on the server.

A cookie says `name.until.mac`. The mac covers the person's password line, so that a changed or
removed line ends every session of that person, in every process that has the same `web.secret`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

COST = (15, 8, 3)
"""scrypt's work: log2 of N, r, p; 32 MiB and about a quarter of a second."""
# What settings may ask for, so that a line cannot take all memory: 256 MiB.
MOST = (18, 8, 16)
SESSION_SECONDS = 12 * 3600


def line(password: str, salt: bytes | None = None) -> str:
    """What stands in `web.users` for this password."""
    salt = secrets.token_bytes(16) if salt is None else salt
    return ":".join(("scrypt", *map(str, COST), salt.hex(), _derived(password, salt, COST).hex()))


def fits(password: str, known: str) -> bool:
    """Whether the password is the one of this line; takes a quarter of a second, and no lock."""
    _, *cost, salt, derived = known.split(":")
    log_n, r, p = (int(number) for number in cost)
    if not all(1 <= number <= most for number, most in zip((log_n, r, p), MOST, strict=True)):
        return False
    return hmac.compare_digest(
        _derived(password, bytes.fromhex(salt), (log_n, r, p)).hex(), derived
    )


NOBODY = ":".join(("scrypt", *map(str, COST), "0" * 32, "0" * 64))
"""A line that no password fits: whoever is not known takes as long as whoever is."""


def issue(name: str, known: str, secret: str, now: float) -> str:
    """The cookie of somebody who has just logged in."""
    until = str(int(now) + SESSION_SECONDS)
    return f"{_encoded(name)}.{until}.{_mac(name, until, known, secret)}"


def name_in(cookie: str) -> str | None:
    """Whose cookie it says to be; nothing is proved by that."""
    encoded = cookie.partition(".")[0]
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, ValueError):
        return None


def valid(cookie: str, name: str, known: str, secret: str, now: float) -> bool:
    """Whether we issued this cookie to that person less than 12 hours ago.

    The person's password line has to be the one of then.
    """
    encoded, _, rest = cookie.partition(".")
    until, _, mac = rest.partition(".")
    expected = _mac(name, until, known, secret)
    fresh = until.isascii() and until.isdigit() and len(until) < 12 and now < int(until)
    return (
        fresh
        and encoded == _encoded(name)
        and hmac.compare_digest(in_bytes(mac), in_bytes(expected))
    )


def in_bytes(text: str) -> bytes:
    """Whatever a header may hold, which need not be UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def _derived(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    log_n, r, p = cost
    memory = 2**log_n * r * 128 + 2**20
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=2**log_n,
        r=r,
        p=p,
        maxmem=memory,
        dklen=32,
    )


def _mac(name: str, until: str, known: str, secret: str) -> str:
    signed = "\0".join(("outbox-streams session", name, until, known))
    return hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()


def _encoded(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
