"""Discovery: one file is enough for a biz type.

What contradicts is refused with both places named.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from streams.agents.chat_history import ChatHistoryPersist, save
from streams.errors import RegistryInvalid, SettingsInvalid
from streams.registry import agent, configured, discover, look_here
from streams.settings import AGENTS, Broker, Settings, Topic

_numbers = itertools.count(1)

HEAD = """
from dataclasses import dataclass
from streams import Batch, agent, event
"""
ORDERS = """
@event("{name}_placed", topic="{name}", key="ref")
@dataclass(frozen=True)
class Placed:
    ref: str
"""
SAVE = """
@agent(Placed)
async def save(messages, db):
    pass
"""
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """`write("orders.py", source, ...)`: the name of a new package on sys.path.

    {name} in a source is that name.
    """
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(**modules: str) -> str:
        name = f"theirs{next(_numbers)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        for module, source in modules.items():
            (tmp_path / name / f"{module}.py").write_text(
                source.replace("{name}", name), encoding="utf-8"
            )
        made.append(name)
        return name

    yield write
    for name in list(sys.modules):
        if name.partition(".")[0] in made:
            del sys.modules[name]


def refusal(*packages: str) -> str:
    with pytest.raises(RegistryInvalid) as caught:
        discover(packages)
    return str(caught.value)


def test_our_own_agents_are_known_unless_others_are_named() -> None:
    registry = discover()
    assert registry.agents["chat_history_persist"].event.payload is ChatHistoryPersist
    assert registry.agents["chat_history_persist"].handler is save
    assert registry.topics == ("chat-history",)


def test_one_file_in_a_users_package_is_enough(write: Write) -> None:
    name = write(orders=HEAD + ORDERS + SAVE)
    registry = discover([name])
    assert registry.agents[f"{name}_placed"].where.startswith(f"{name}.orders.save (")
    assert registry.topics == (name,)
    assert f"{name}_placed" not in discover().agents, "another deployment's agents are not ours"


def test_a_package_may_be_a_single_module_or_hold_packages(write: Write, tmp_path: Path) -> None:
    name = write(orders=HEAD + ORDERS + SAVE)
    assert f"{name}_placed" in discover([f"{name}.orders"]).agents
    inner = tmp_path / name / "inner"
    inner.mkdir()
    (inner / "__init__.py").touch()
    (inner / "deep.py").write_text(
        (HEAD + ORDERS + SAVE).replace("{name}", f"{name}_deep"), encoding="utf-8"
    )
    assert f"{name}_deep_placed" in discover([name]).agents


def test_a_package_named_twice_counts_once(write: Write) -> None:
    name = write(orders=HEAD + ORDERS + SAVE)
    assert len(discover([name, name, f"{name}.orders", "streams.agents"]).agents) == 2


def test_every_topic_gets_the_prefix(write: Write) -> None:
    name = write(orders=HEAD + ORDERS + SAVE)
    registry = configured(Settings(agents=(AGENTS, name), broker=Broker(topic_prefix="test.")))
    assert registry.topics == ("test.chat-history", f"test.{name}")
    assert discover([name]).topics == (name,), (
        "discovering with a prefix changed what is registered"
    )


@pytest.mark.parametrize("name", ["chat-histroy", "test.chat-history", "chat-history-retry-retry"])
def test_settings_of_a_topic_that_nobody_has_are_refused(name: str) -> None:
    topics = {
        name: Topic(partitions=3),
        "chat-history-retry": Topic(),
        "seed": Topic(format="envelope"),
    }
    with pytest.raises(
        SettingsInvalid,
        match=(
            rf"setting 'topics\.{name}' is of a topic that no agent here has:"
            r" expected one of chat-history, seed, or"
        ),
    ):
        configured(Settings(topics=topics, broker=Broker(topic_prefix="test.")))


def test_envelope_topics_are_consumed_beside_those_of_our_events() -> None:
    envelope = Topic(format="envelope")
    topics = {
        "seed": envelope,
        "other": replace(envelope, source="theirs"),
        "chat-history": Topic(partitions=3),
    }
    registry = configured(Settings(topics=topics, broker=Broker(topic_prefix="test.")))
    assert registry.envelopes == {"test.seed": "seed", "test.other": "theirs"}
    assert registry.topics == ("test.chat-history",)
    assert registry.consumed == ("test.chat-history", "test.other", "test.seed")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["chat-history"],
            (
                "'topics.chat-history.format' is 'envelope': expected 'outbox',"
                " because topic 'chat-history' is an"
            ),
        ),
        (
            ["chat-history-retry"],
            "because topic 'chat-history-retry' is the retry topic of chat-history",
        ),
        (["seed", "seed-retry"], "because topic 'seed-retry' is the retry topic of seed"),
        (["a" * 244], "expected a topic of at most 243 characters"),
        (["no topic"], "expected a topic of at most 243 characters"),
    ],
)
def test_an_envelope_topic_that_is_taken_or_none_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        configured(Settings(topics={name: Topic(format="envelope") for name in names}))
    assert message in str(caught.value)


def test_a_topic_too_long_with_its_prefix_is_refused(write: Write) -> None:
    name = write(orders=HEAD + ORDERS.replace('topic="{name}"', f'topic="{"a" * 249}"') + SAVE)
    with pytest.raises(
        RegistryInvalid,
        match=rf"topic 'p\.a+' of {name}\.orders\.Placed \(.*\) is too long with the",
    ):
        discover([name], "p.")


def test_a_biz_type_with_two_agents_is_refused_with_both_places(write: Write) -> None:
    other = "\nfrom {name}.orders import Placed\n" + SAVE.replace("save", "keep")
    name = write(orders=HEAD + ORDERS + SAVE, others=HEAD + other)
    message = refusal(name)
    assert message.startswith(f"biz_type '{name}_placed' has two agents: {name}.orders.save (")
    assert f"{name}/orders.py) and {name}.others.keep (" in message


def test_the_same_function_written_twice_is_two_agents(write: Write) -> None:
    name = write(orders=HEAD + ORDERS + SAVE + SAVE)
    assert "has two agents" in refusal(name)


def test_a_biz_type_with_two_events_is_refused_with_both_places(write: Write) -> None:
    name = write(orders=HEAD + ORDERS + SAVE, others=HEAD + ORDERS.replace("Placed", "Other"))
    message = refusal(name)
    assert message.startswith(f"biz_type '{name}_placed' is two events: {name}.orders.Placed (")
    assert f") and {name}.others.Other (" in message


def test_a_biz_type_of_ours_cannot_be_taken(write: Write) -> None:
    name = write(orders=HEAD + ORDERS.replace("{name}_placed", "chat_history_persist") + SAVE)
    message = refusal(AGENTS, name)
    assert "biz_type 'chat_history_persist' has two agents" in message
    assert "streams.agents.chat_history.save" in message
    assert f"{name}.orders.save" in message


def test_an_event_without_agent_on_a_consumed_topic_is_refused_with_both_places(
    write: Write,
) -> None:
    name = write(
        orders=HEAD + ORDERS + SAVE,
        lost=HEAD + ORDERS.replace("_placed", "_lost").replace("Placed", "Lost"),
    )
    message = refusal(name)
    assert message.startswith(f"event '{name}_lost' ({name}.lost.Lost (")
    assert f"has no agent, but topic '{name}' is consumed by {name}.orders.save (" in message


def test_an_event_without_agent_on_a_topic_of_another_service_is_fine(write: Write) -> None:
    name = write(orders=HEAD + ORDERS)
    assert f"{name}_placed" not in discover([name]).agents


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all' ("),
        ("def broken(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero ("),
        ("raise SystemError('x')", "SystemError: x ("),
    ],
)
def test_a_package_that_cannot_be_imported_says_why_and_where(
    write: Write, source: str, reason: str
) -> None:
    name = write(orders=source)
    message = refusal(name)
    assert message.startswith(f"agents: '{name}' cannot be imported: {reason}")
    assert "orders.py" in message


@pytest.mark.parametrize("name", ["nowhere_at_all", "", ".relative", "a..b"])
def test_a_package_that_does_not_exist_is_named(name: str) -> None:
    assert refusal(name).startswith(f"agents: {name!r} cannot be imported: ")


def test_a_package_in_the_working_folder_is_found_by_our_commands_behind_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lying_here").mkdir()
    (tmp_path / "lying_here" / "orders.py").write_text(
        HEAD + ORDERS.replace("{name}", "lying_here") + SAVE
    )
    (tmp_path / "json.py").write_text("raise ImportError(__file__)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    message = refusal("lying_here")
    assert message.endswith(f"it is neither installed, nor on PYTHONPATH, nor in {tmp_path}")
    look_here()
    look_here()
    assert sys.path[-1] == str(tmp_path) != sys.path[-2]
    importlib.invalidate_caches()
    assert "lying_here_placed" in discover(["lying_here"]).agents


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (ORDERS + SAVE.replace("async def", "def"), "is not an async function, which @agent needs"),
        (ORDERS + SAVE.replace(", db", ""), "orders.save ("),
        (
            ORDERS + SAVE.replace(", db", ", db, more"),
            "cannot be called with (messages, db): missing a required arg",
        ),
        (SAVE.replace("Placed", "int"), "builtins.int is not an event: decorate it"),
        (ORDERS.replace("(frozen=True)", ""), "orders.Placed ("),
        (
            ORDERS.replace("ref: str", "ref: 'Nowhere'") + SAVE,
            "its fields cannot be checked by type: name 'Nowhere'",
        ),
        (
            ORDERS.replace("ref: str", "ref: 'dict | Placed'") + SAVE,
            "its fields cannot be checked by type: Type ",
        ),
    ],
)
def test_a_bad_decoration_is_refused_in_its_own_words(
    write: Write, source: str, reason: str
) -> None:
    message = refusal(write(orders=HEAD + source))
    assert reason in message
    assert "cannot be imported" not in message


def test_a_package_that_was_mended_after_a_failed_import_is_not_registered_twice(
    write: Write, tmp_path: Path
) -> None:
    name = write(orders=HEAD + ORDERS + SAVE + "\n1 / 0\n")
    assert "cannot be imported" in refusal(name)
    # A shorter file: its cached bytecode is recognized as old even within one second.
    (tmp_path / name / "orders.py").write_text(
        (HEAD + ORDERS + SAVE).replace("{name}", name), encoding="utf-8"
    )
    assert f"{name}_placed" in discover([name]).agents


def test_a_class_with_call_is_no_handler() -> None:
    class Handler:
        async def __call__(self, messages: object, db: object) -> None: ...

    with pytest.raises(RegistryInvalid, match="is not an async function"):
        agent(ChatHistoryPersist)(Handler())
