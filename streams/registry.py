"""Which handler serves which event: `@agent` registers it, `discover` imports and checks all."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import msgspec

from streams.effect import Effect as Effect
from streams.effect import Tally as Tally
from streams.errors import RegistryInvalid, SettingsInvalid
from streams.events import Batch, EventType, declared, declared_in, is_topic
from streams.settings import AGENTS, RETRY_SUFFIX, Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Handler = Callable[[Batch[Any], "AsyncConnection"], Awaitable[None]]
OnDead = Literal["continue", "hold"]
H = TypeVar("H", bound=Callable[..., Awaitable[None]])


@dataclass(frozen=True, slots=True)
class Agent:
    """One biz_type: its event, its handler, and what happens when a message fails.

    The handler persists a batch of it. A message that failed is tried again after `first_delay`
    seconds, then twice that, at most `most_delay`; after `attempts` failures it is dead. `on_dead`
    says whether its conversation goes on then, or waits for an operator. `effect` tells `streams
    audit` where to find what the handler wrote for a message.
    """

    event: EventType
    handler: Handler
    where: str
    attempts: int = 20
    first_delay: float = 1.0
    most_delay: float = 32.0
    on_dead: OnDead = "continue"
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Registry:
    """Every biz_type this process knows, by name.

    `envelopes` are other systems' topics, each with the name of its system.
    """

    agents: Mapping[str, Agent]
    envelopes: Mapping[str, str] = field(default_factory=dict)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics of our own events, sorted."""
        return tuple(sorted({agent.event.topic for agent in self.agents.values()}))

    @property
    def consumed(self) -> tuple[str, ...]:
        """Every topic that workers consume, sorted."""
        return tuple(sorted({*self.topics, *self.envelopes}))


def agent(
    payload: type[Any],
    *,
    attempts: int = 20,
    first_delay: float = 1.0,
    most_delay: float = 32.0,
    on_dead: OnDead = "continue",
    effect: Effect | None = None,
) -> Callable[[H], H]:
    """Declare an async function as an event's handler.

    Its shape is `(messages: Batch[payload], db: AsyncConnection) -> None`. The keywords are those
    of `Agent`; RegistryInvalid names one that cannot be.
    """
    event = declared(payload)
    _check_fate(event.where, attempts, first_delay, most_delay, on_dead)
    _check_effect(event, effect)

    def register(handler: H) -> H:
        is_async = inspect.iscoroutinefunction(handler)
        if not is_async:
            raise RegistryInvalid(f"{handler!r} is not an async function, which @agent needs")
        where = f"{handler.__module__}.{handler.__qualname__} ({inspect.getsourcefile(handler)})"
        try:
            inspect.signature(handler).bind("messages", "db")
        except TypeError as error:
            raise RegistryInvalid(
                f"{where} cannot be called with (messages, db): {error}"
            ) from None
        agent_of_event = Agent(
            event, handler, where, attempts, first_delay, most_delay, on_dead, effect
        )
        _registered.append((sys.modules.get(handler.__module__), agent_of_event))
        return handler

    return register


def discover(packages: Iterable[str] = (AGENTS,), topic_prefix: str = "") -> Registry:
    """Import every module of `packages`, and return what they registered, topics prefixed.

    RegistryInvalid when a package cannot be imported, a biz_type has two handlers or two events, an
    event on a consumed topic has none, or a payload's types cannot be checked; each names the
    places.
    """
    modules = [module for package in packages for module in _import(package)]
    agents: dict[str, Agent] = {}
    for module, agent in _registered:
        if module not in modules:
            continue
        other = agents.setdefault(agent.event.biz_type, agent)
        if other is not agent:
            raise RegistryInvalid(
                f"biz_type {agent.event.biz_type!r} has two agents: {other.where} and {agent.where}"
            )
    _check_events(modules, agents)
    return Registry({name: _prefixed(agent, topic_prefix) for name, agent in agents.items()})


def configured(settings: Settings) -> Registry:
    """The registry these settings ask for, envelope topics included.

    SettingsInvalid when one of those cannot be.
    """
    discovered = discover(settings.agents, settings.broker.topic_prefix)
    registry = replace(discovered, envelopes=_envelopes(settings, discovered))
    _check_topics(settings, registry)
    return registry


def packages_of_agents() -> frozenset[str]:
    """The top-level packages that hold agents of this process, ours not among them."""
    return frozenset(agent.handler.__module__.partition(".")[0] for _, agent in _registered) - {
        "streams"
    }


# With the module as it was when it registered: an import that failed and is tried again registers
# again.
_registered: list[tuple[ModuleType | None, Agent]] = []


def _check_fate(
    where: str, attempts: int, first_delay: float, most_delay: float, on_dead: str
) -> None:
    if not isinstance(attempts, int) or attempts < 1:
        raise RegistryInvalid(f"{where}: attempts is {attempts!r}, expected a number of at least 1")
    if not 0 < first_delay <= most_delay:
        raise RegistryInvalid(
            f"{where}: first_delay is {first_delay!r} and most_delay {most_delay!r},"
            " expected 0 < first_delay <= most_delay"
        )
    if on_dead not in get_args(OnDead):
        raise RegistryInvalid(f"{where}: on_dead is {on_dead!r}, expected 'continue' or 'hold'")


def _envelopes(settings: Settings, ours: Registry) -> dict[str, str]:
    """Each envelope topic, prefixed, with its source."""
    sources = settings.envelope_sources
    taken = dict.fromkeys(ours.topics, "an event's own")
    taken |= {
        topic + RETRY_SUFFIX: f"the retry topic of {topic}" for topic in (*ours.topics, *sources)
    }
    for topic in sources:
        name = topic.removeprefix(settings.broker.topic_prefix)
        setting = f"setting 'topics.{name}.format' is 'envelope'"
        if not is_topic(topic + RETRY_SUFFIX):
            raise SettingsInvalid(
                f"{setting}: expected a topic of at most 243 characters a-z, A-Z, 0-9, '.', '_',"
                " '-', with the prefix"
            )
        if other := taken.get(topic):
            raise SettingsInvalid(
                f"{setting}: expected 'outbox', because topic {topic!r} is {other}"
            )
    return sources


def _check_topics(settings: Settings, registry: Registry) -> None:
    """Refuse settings of a topic that nobody has.

    It would keep the defaults, and nobody would notice before it has messages.
    """
    prefix = settings.broker.topic_prefix
    known = {topic.removeprefix(prefix) for topic in registry.consumed}
    for name in settings.topics:
        if name not in known and name.removesuffix(RETRY_SUFFIX) not in known:
            expected = ", ".join(sorted(known)) or "(none)"
            raise SettingsInvalid(
                f"setting 'topics.{name}' is of a topic that no agent here has:"
                f" expected one of {expected}, or `format: envelope`"
            )


def _prefixed(agent: Agent, prefix: str) -> Agent:
    topic = prefix + agent.event.topic
    if not is_topic(topic + RETRY_SUFFIX):
        raise RegistryInvalid(
            f"topic {topic!r} of {agent.event.where} is too long with the prefix:"
            " expected at most 243"
        )
    return replace(agent, event=replace(agent.event, topic=topic))


def look_here() -> None:
    """Let packages of agents be found in the working folder too.

    It comes behind all else: nothing there hides a library.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _import(package: str) -> list[ModuleType]:
    try:
        root = importlib.import_module(package)
        names = [package]
        if hasattr(root, "__path__"):
            names += [
                entry.name for entry in pkgutil.walk_packages(root.__path__, prefix=f"{package}.")
            ]
        return [importlib.import_module(name) for name in names]
    except RegistryInvalid:
        raise
    except Exception as error:  # Whatever a module does when it is imported.
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and f"{package}.".startswith(f"{error.name}."):
            reason += f"; it is neither installed, nor on PYTHONPATH, nor in {os.getcwd()}"
        raise RegistryInvalid(
            f"agents: {package!r} cannot be imported: {reason}{_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    """Where the import broke, unless that was the import machinery itself."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = last.filename == importlib.__file__ or last.filename.startswith("<frozen")
    return "" if ours else f" ({last.filename}:{last.lineno})"


def _check_events(modules: list[ModuleType], agents: Mapping[str, Agent]) -> None:
    consumed = {agent.event.topic: agent.where for agent in agents.values()}
    seen: dict[str, EventType] = {agent.event.biz_type: agent.event for agent in agents.values()}
    for event in declared_in(modules):
        other = seen.setdefault(event.biz_type, event)
        if other.payload is not event.payload:
            raise RegistryInvalid(
                f"biz_type {event.biz_type!r} is two events: {other.where} and {event.where}"
            )
        if event.biz_type not in agents and event.topic in consumed:
            raise RegistryInvalid(
                f"event {event.biz_type!r} ({event.where}) has no agent, but topic {event.topic!r}"
                f" is consumed by {consumed[event.topic]}"
            )
    for event in seen.values():
        _check_types(event)


def _check_effect(event: EventType, effect: Effect | None) -> None:
    known = {each.name for each in dataclasses.fields(event.payload)}
    if effect is not None and not known.issuperset(effect.fields):
        unknown = min(set(effect.fields) - known)
        raise RegistryInvalid(
            f"{event.where}: its agent's effect names {unknown!r}, which is no field of it"
        )


def _check_types(event: EventType) -> None:
    """The first message would find it out too, but that one is a user's."""
    try:
        msgspec.convert({}, event.payload)
    except msgspec.ValidationError:
        pass
    except Exception as error:
        raise RegistryInvalid(
            f"{event.where}: its fields cannot be checked by type: {error}"
        ) from None
