"""`/health/live` and `/health/ready`: 200 or 503, with the reasons as JSON."""

from __future__ import annotations

from typing import Any, Protocol

import faust


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


LIVE = 30.0  # seconds without a heartbeat after which a supervisor should restart the process


def add_health(app: faust.App, pulse: WorkerHealth) -> None:
    """Add both pages to the app's web server."""

    @app.page("/health/live")
    async def live(web: Any, request: Any) -> Any:
        alive = pulse.age < LIVE
        return web.json({"live": alive, "heartbeat_age": round(pulse.age, 1)}, status=200 if alive else 503)

    @app.page("/health/ready")
    async def ready(web: Any, request: Any) -> Any:
        found = pulse.readiness()
        answer = {
            "ready": not found.reasons,
            "reasons": found.reasons,
            "partitions": found.partitions,
            "heartbeat_age": found.heartbeat_age,
            "positions": found.positions,
        }
        return web.json(answer, status=503 if found.reasons else 200)
