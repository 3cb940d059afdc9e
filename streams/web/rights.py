"""What a person or program may do on the pages: a set of rights, of which each role is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Right(StrEnum):
    """One thing that somebody may do; every route names the right that it needs."""

    VIEW = "view"  # figures, messages and conversations, without their text
    TEXT = "text"  # what users wrote, each look written down
    OPERATE = "operate"  # replay, release, start an audit
    DISCARD = "discard"  # give messages up for good
    ADMIN = "admin"  # what is to be the administrator's alone; no route asks for it today


ROLES: Mapping[str, frozenset[Right]] = {
    "viewer": frozenset({Right.VIEW}),
    "support": frozenset({Right.VIEW, Right.TEXT}),
    "operator": frozenset({Right.VIEW, Right.OPERATE}),
    "admin": frozenset(Right),
}
"""The rights of each role of the settings."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the name that acts are written down with, and the rights.

    `how` says how we know: local, user, proxy, token or host (the application that we are mounted
    in).
    """

    name: str
    rights: frozenset[Right]
    how: str
