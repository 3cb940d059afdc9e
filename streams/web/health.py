"""`/health/live` and `/health/ready`: 200 or 503 with the reasons, and a server for these alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

LIVE = 30.0  # seconds without a heartbeat after which a supervisor should restart the process

Health = tuple[int, Mapping[str, Any]]


class Readiness(Protocol):
    """What /health/ready tells."""

    partitions: dict[str, list[int]]
    reasons: list[str]
    heartbeat_age: float
    positions: dict[str, Any]


class WorkerHealth(Protocol):
    """What the pages ask the worker."""

    @property
    def age(self) -> float: ...
    def readiness(self) -> Any: ...


def live(health: WorkerHealth) -> Health:
    """Whether the process should go on."""
    alive = health.age < LIVE
    return 200 if alive else 503, {"live": alive, "heartbeat_age": round(health.age, 1)}


def ready(health: WorkerHealth) -> Health:
    """Whether the worker works, or stands by."""
    readiness = health.readiness()
    return 503 if readiness.reasons else 200, {
        "ready": not readiness.reasons,
        "reasons": readiness.reasons,
        "partitions": readiness.partitions,
        "heartbeat_age": readiness.heartbeat_age,
        "positions": readiness.positions,
    }


def add_health(app: web.Application, health: WorkerHealth) -> None:
    """Add both pages to an application that has not been started."""

    async def answer_live(_: web.Request) -> web.Response:
        status, told = live(health)
        return web.json_response(told, status=status)

    async def answer_ready(_: web.Request) -> web.Response:
        status, told = ready(health)
        return web.json_response(told, status=status)

    app.router.add_get("/health/live", answer_live)
    app.router.add_get("/health/ready", answer_ready)
