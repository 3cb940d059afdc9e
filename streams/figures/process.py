"""One life of a process, as the others see it: who it is, what it does, and what it waits for."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import orjson
import psutil

BEAT_SECONDS = 5.0
PROCESSES_A_SECOND = 100


def incarnation() -> str:
    """This life of this process.

    In a container every process has the pid 1, and a fork is another life.
    """
    return _incarnation_of(os.getpid())


@cache
def _incarnation_of(pid: int) -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a process tells of itself.

    `kind` is worker, relay or web, `name` the consumer group or the relay. `waits_for` says in
    words what holds a run up, `waits_code` its SQLSTATE, `waits_seconds` for how long.
    """

    kind: str
    name: str
    address: str | None = None
    partitions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    runs: int = 0
    pool_used: int | None = None
    pool_size: int | None = None
    waits_for: str | None = None
    waits_code: str | None = None
    waits_seconds: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """As `process_beat` takes them."""
        return {
            "id": incarnation(),
            "kind": self.kind,
            "name": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": our_version(),
            "address": self.address,
            "partitions": orjson.dumps(
                {topic: list(numbers) for topic, numbers in self.partitions.items()}
            ).decode(),
            "memory": psutil.Process().memory_info().rss,
            "runs": self.runs,
            "pool_used": self.pool_used,
            "pool_size": self.pool_size,
            "waits_for": self.waits_for,
            "waits_code": self.waits_code,
            "waits_seconds": self.waits_seconds,
            "figures": orjson.dumps(dict(self.figures)).decode(),
        }


def beat_seconds(processes: int) -> float:
    """How long to wait for the next sign of life, so that many processes together write seldom."""
    return max(BEAT_SECONDS, processes / PROCESSES_A_SECOND)


@cache
def our_version() -> str:
    """The version of this package."""
    return version("outbox-streams")
