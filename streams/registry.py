"""Which handler serves which event: `@agent` registers it, `discover` imports the packages and checks that all fits."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from streams.errors import RegistryInvalid
from streams.events import Batch, EventType, declared
from streams.settings import Settings

Handler = Callable[[Batch[Any], AsyncConnection], Awaitable[None]]
H = TypeVar("H", bound=Callable[..., Awaitable[None]])

OURS = "streams.agents"


@dataclass(frozen=True, slots=True)
class Agent:
    """One biz_type: its event and the handler that persists a batch of it."""

    event: EventType
    handler: Handler
    where: str


@dataclass(frozen=True, slots=True)
class Registry:
    """Every biz_type this process knows, by name."""

    agents: Mapping[str, Agent]

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics consumed, sorted."""
        return tuple(sorted({agent.event.topic for agent in self.agents.values()}))


def agent(payload: type[Any]) -> Callable[[H], H]:
    """Declare an async function `(messages: Batch[payload], db: AsyncConnection) -> None` as the handler of an event."""
    event = declared(payload)

    def register(handler: H) -> H:
        where = f"{handler.__module__}.{handler.__qualname__} ({inspect.getsourcefile(handler)})"
        if not inspect.iscoroutinefunction(handler):
            raise RegistryInvalid(f"{where} is not an async function, which @agent needs")
        _registered.append(Agent(event, handler, where))
        return handler

    return register


def discover(packages: Iterable[str] = (), topic_prefix: str = "") -> Registry:
    """Import every module of our agents and of `packages`, and return what they registered, topics prefixed.

    RegistryInvalid when a package cannot be imported, a biz_type has two handlers, or an event on a consumed topic
    has none; each names the places.
    """
    modules = [module for package in (OURS, *packages) for module in _import(package)]
    agents: dict[str, Agent] = {}
    for found in _registered:
        if found.handler.__module__ not in modules:
            continue
        other = agents.setdefault(found.event.biz_type, found)
        if other is not found:
            raise RegistryInvalid(
                f"biz_type {found.event.biz_type!r} has two agents: {other.where} and {found.where}"
            )
    _check_events(modules, agents)
    return Registry({name: _prefixed(found, topic_prefix) for name, found in agents.items()})


def configured(settings: Settings) -> Registry:
    """The registry these settings ask for."""
    return discover(settings.agents, settings.broker.topic_prefix)


_registered: list[Agent] = []


def _prefixed(found: Agent, prefix: str) -> Agent:
    return replace(found, event=replace(found.event, topic=prefix + found.event.topic))


def _import(package: str) -> list[str]:
    try:
        root = importlib.import_module(package)
        found = [root.__name__]
        if hasattr(root, "__path__"):
            found += [entry.name for entry in pkgutil.walk_packages(root.__path__, prefix=f"{package}.")]
        for name in found:
            importlib.import_module(name)
    except ImportError as error:
        raise RegistryInvalid(f"agents: {package!r} cannot be imported: {error}") from error
    return found


def _check_events(modules: list[str], agents: Mapping[str, Agent]) -> None:
    from streams.events import _declared

    consumed = {found.event.topic: found.where for found in agents.values()}
    seen: dict[str, EventType] = {found.event.biz_type: found.event for found in agents.values()}
    for event in _declared.values():
        if event.payload.__module__ not in modules:
            continue
        other = seen.setdefault(event.biz_type, event)
        if other.payload is not event.payload:
            raise RegistryInvalid(f"biz_type {event.biz_type!r} is two events: {other.where} and {event.where}")
        if event.biz_type not in agents and event.topic in consumed:
            raise RegistryInvalid(
                f"event {event.biz_type!r} ({event.where}) has no agent, but topic {event.topic!r} is consumed"
                f" by {consumed[event.topic]}"
            )
