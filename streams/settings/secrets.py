"""What of the settings may be shown: no password, and no URL with one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from streams.settings.sections import Settings

SECRETS = ("sasl_password", "secret", "proxy_secret", "password", "sha256")
"""Keys whose values are never shown."""


def public(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with every secret replaced by `***`."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    shown: dict[str, Any] = _shown(plain)
    return shown


def redact(url: str) -> str:
    """The URL without its password, and without its query, which may hold another one."""
    scheme, separator, rest = url.rpartition("://")
    # A password may hold any of :/?#@ unescaped, so that urlsplit would find it in the path: the
    # last @ ends it.
    login, at, address = rest.rpartition("@")
    address, question, _ = address.partition("?")
    if not separator and not at and not re.fullmatch(r"[\w.:,\[\]-]*", address):
        return "***"  # `host=... password=...`, or anything else that is no address
    user, colon, _ = login.partition(":")
    password, query = ":***" if colon else "", "?***" if question else ""
    return f"{scheme}{separator}{user}{password}{at}{address}{query}"


def without_password(url: str) -> str:
    """A database's URL without the password of its login.

    libpq reads that from a file then.
    """
    scheme, separator, rest = url.rpartition("://")
    login, at, address = rest.rpartition("@")
    return f"{scheme}{separator}{login.partition(':')[0]}{at}{address}"


def visible(name: str, value: Any) -> Any:
    """A value as it may be shown."""
    if not isinstance(value, str) or not value:
        return value
    # The archive is a folder, or a URL.
    address = name.endswith("url") or (name == "archive" and "://" in value)
    return redact(value) if address else "***" if name in SECRETS else value


def _shown(plain: Any, name: str = "") -> Any:
    if isinstance(plain, dict):
        return {key: _shown(value, key) for key, value in plain.items()}
    return visible(name, plain)
