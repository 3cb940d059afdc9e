"""Kafka Connect's REST interface, as far as one connector needs it."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from streams.errors import ServiceUnreachable, UsageError
from streams.settings import redact
from streams.tasks import apart

TIMEOUT = 10.0
# Connect answers 409 while its workers agree on who does what.
REBALANCING = 409
ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class State:
    """How a connector is: RUNNING, STOPPED, PAUSED, UNASSIGNED or FAILED.

    FAILED comes with the first line of why. None: it is not there.
    """

    name: str | None
    reason: str = ""


class Connect:
    """One connector at one address.

    ServiceUnreachable when nobody answers, UsageError when Connect refuses.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url.rstrip("/")
        self._name = name
        self._path = f"/connectors/{quote(name)}"

    async def configuration(self) -> dict[str, str] | None:
        """What the connector was given; None when there is none."""
        configuration: dict[str, str] | None = await self._ask("GET", f"{self._path}/config")
        return configuration

    async def faults(self, configuration: Mapping[str, str]) -> list[str]:
        """What the connector's own validation says against it, one line each."""
        kind = configuration["connector.class"].rpartition(".")[2]
        body = {**configuration, "name": self._name}
        answer = await self._ask("PUT", f"/connector-plugins/{kind}/config/validate", body)
        if answer is None:
            return [f"connector.class is not installed in Kafka Connect at {redact(self._url)}"]
        values = [each["value"] for each in answer["configs"]]
        return [f"{each['name']}: {_line(error)}" for each in values for error in each["errors"]]

    async def register(self, configuration: Mapping[str, str]) -> None:
        """Create the connector, or give it this configuration."""
        await self._ask("PUT", f"{self._path}/config", configuration)

    async def state(self) -> State:
        """How the connector and its task are."""
        answer = await self._ask("GET", f"{self._path}/status")
        if answer is None:
            return State(None)
        parts = [answer["connector"], *answer["tasks"]]
        for part in parts:
            if part["state"] == "FAILED":
                return State("FAILED", _line(part.get("trace", "")))
        if answer["connector"]["state"] == "RUNNING" and not answer["tasks"]:
            return State("UNASSIGNED")
        return State(
            next((part["state"] for part in parts if part["state"] != "RUNNING"), "RUNNING")
        )

    async def restart(self) -> None:
        """Start again what failed."""
        await self._ask("POST", f"{self._path}/restart?includeTasks=true&onlyFailed=true")

    async def delete(self) -> None:
        """Forget the connector."""
        await self._ask("DELETE", self._path)

    async def stop(self) -> None:
        """End its task, which gives the slot back."""
        await self._ask("PUT", f"{self._path}/stop")

    async def forget(self) -> None:
        """Drop the positions that Connect keeps for the stopped connector.

        It begins where its slot does then.
        """
        await self._ask("DELETE", f"{self._path}/offsets")

    async def resume(self) -> None:
        """Start its task, if it was stopped or paused."""
        await self._ask("PUT", f"{self._path}/resume")

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        for attempt in range(ATTEMPTS):
            status, answer = await apart(self._send, method, path, body)
            if status != REBALANCING:
                break
            await asyncio.sleep(0.2 * (attempt + 1))
        if status == 404:
            return None
        if status >= 400:
            message = _line(answer.get("message", "") if isinstance(answer, dict) else "")
            # 5xx and a rebalance without end: it has lost its broker, or is still starting.
            if status >= 500 or status == REBALANCING:
                raise ServiceUnreachable(
                    f"Kafka Connect at {redact(self._url)} cannot work: {message or status}"
                )
            raise UsageError(
                f"Kafka Connect at {redact(self._url)} refuses connector {self._name}: {message}"
            )
        return answer

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        payload = None if body is None else orjson.dumps(dict(body))
        request = urllib.request.Request(
            self._url + path, payload, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json(error.read())
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ServiceUnreachable(
                f"Kafka Connect at {redact(self._url)} cannot be reached: {reason}"
            ) from None


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text) if text else {}
    except ValueError:
        return {}


def _line(text: str) -> str:
    """The innermost cause of a Java stack trace, or the first line of a message."""
    lines = [line.strip() for line in text.strip().splitlines()] or [""]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes[-1] if causes else lines[0])[:500]
