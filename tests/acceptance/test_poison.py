"""A poison of every kind in the middle of each conversation, while processes are killed.

Each message gets its own fate.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from streams.dev.process import Process
from tests.conftest import Eventually, World
from tests.fixtures.load import Load
from tests.fixtures.publish import CHAT, payload

CONVERSATIONS = 100
FRAIL = "frail_said"

AGENT = """
from dataclasses import dataclass
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from streams import Batch, Effect, agent, event

@event("frail_said", topic="chat-history", key="conversation_id")
@dataclass(frozen=True, slots=True, kw_only=True)
class FrailSaid:
    conversation_id: str
    message: str

FIELDS = {"conversation_id": "chat_id", "message": "message"}
EFFECT = Effect(table="frails", fields=FIELDS, order="id")

@agent(FrailSaid, attempts=3, first_delay=1.0, most_delay=1.5, effect=EFFECT)
async def save(messages: Batch[FrailSaid], db: AsyncConnection) -> None:
    await db.execute(text(
        "INSERT INTO frails (outbox_id, chat_id, message)"
        " SELECT outbox_id, conversation_id, message"
        " FROM json_to_recordset(:m) AS m (outbox_id bigint, conversation_id text, message text)"
    ), {"m": messages.json()})
"""

# What fails is decided in the database, by what is committed there: a killed worker's try counts
# for nothing.
POISONED = """
CREATE TABLE frails (
    id bigint GENERATED ALWAYS AS IDENTITY, outbox_id bigint, chat_id text, message text
);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'poison' USING ERRCODE = TG_ARGV[0]; END $$;
CREATE FUNCTION tried(bigint) RETURNS integer LANGUAGE sql
AS 'SELECT attempts FROM outbox_state WHERE outbox_id = $1';
CREATE TRIGGER data BEFORE INSERT ON chat_histories FOR EACH ROW
    WHEN (NEW.message_content = 'data') EXECUTE FUNCTION refuse('22003');
CREATE TRIGGER hopeless BEFORE INSERT ON frails FOR EACH ROW
    WHEN (NEW.message = 'hopeless') EXECUTE FUNCTION refuse('P0001');
CREATE TRIGGER heals BEFORE INSERT ON frails FOR EACH ROW
    WHEN (NEW.message = 'heals' AND tried(NEW.outbox_id) < 2) EXECUTE FUNCTION refuse('P0001');
"""

# Each kind of poison: its biz_type, and the status, attempts and code that it must end with.
FATES = {
    "data": (CHAT, ("dead", 1, "22003")),
    "heals": (FRAIL, ("consumed", 2, "P0001")),
    "hopeless": (FRAIL, ("dead", 3, "P0001")),
    "invalid": (CHAT, ("dead", 0, "payload")),
    "unknown": ("who_knows", ("dead", 0, "biz_type")),
}
SOUND = ("consumed", 0, None)


class PoisonedLoad(Load):
    """Conversations of equal length, shuffled into one another.

    The message in the middle of each is its poison.
    """

    def __init__(self, url: str, topic: str, count: int, *, rate: float) -> None:
        super().__init__(url, topic, count, conversations=CONVERSATIONS, rate=rate)
        turns = [one for one in range(CONVERSATIONS) for _ in range(count // CONVERSATIONS)]
        random.Random(count).shuffle(turns)
        said: Counter[int] = Counter()
        self._messages: list[tuple[str, str, dict[str, Any]]] = []
        for number, one in enumerate(turns):
            said[one] += 1
            middle = said[one] == count // CONVERSATIONS // 2
            self._messages.append(
                _poison(one) if middle else (CHAT, f"c{one}", payload(number, f"c{one}"))
            )

    def message(self, number: int) -> tuple[str, str, dict[str, Any]]:
        return self._messages[number]


def _poison(conversation: int) -> tuple[str, str, dict[str, Any]]:
    kind = list(FATES)[conversation % len(FATES)]
    key = f"c{conversation}"
    changes = {"user_id": "nobody"} if kind == "invalid" else {}
    return FATES[kind][0], key, payload(0, key, message=kind, **changes)


@pytest.fixture
async def world(world: World, tmp_path: Path) -> World:
    """A migrated world in which some messages cannot be persisted, or not at once."""
    package = tmp_path / "frailty"
    package.mkdir()
    (package / "__init__.py").write_text(AGENT)
    (tmp_path / "faust.yml").write_text("agents: [streams.agents, frailty]\n")
    world.environ |= {"STREAMS_CONFIG": str(tmp_path / "faust.yml"), "PYTHONPATH": str(tmp_path)}
    world.environ["STREAMS_WORKER__UNKNOWN_DAYS"] = "0.00001"  # nobody comes who knows it
    assert await world.start("streams", "migrate").finish(60) == 0
    world.query(POISONED)
    return world


@pytest.mark.parametrize(
    ("count", "kills", "rate"),
    [
        (2_500, 3, 400),
        pytest.param(20_000, 12, 700, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
async def test_a_poison_in_each_conversation_costs_itself_alone_whatever_is_killed(
    world: World, eventually: Eventually, count: int, kills: int, rate: float
) -> None:
    chance = random.Random(count)
    running: dict[str, Process] = {
        "relay": world.relay(),
        "worker-1": world.worker(),
        "worker-2": world.worker(),
    }
    load = PoisonedLoad(world.url, world.topic, count, rate=rate)
    load.start()
    await eventually(lambda: world.query("SELECT 1 FROM chat_histories LIMIT 1"), 60)
    # Each dies at least once.
    for kill, victim in enumerate(
        [*running, *chance.choices(list(running), k=kills - len(running))]
    ):
        goal = count * (kill + 1) // (kills + 1)
        await eventually(lambda goal=goal: load.sent >= goal or not load.is_alive(), 120)
        running[victim].kill()
        await asyncio.sleep(chance.uniform(0, 1))
        running[victim] = world.relay() if victim == "relay" else world.worker()
    await eventually(lambda: load.failure or not load.is_alive(), 120)
    assert load.failure is None
    await eventually(lambda: unsettled(world) == 0, 90, every=0.3)
    check_fates(world, count)
    check_effects(world)
    check_order(world)
    await check_audit(world, count)
    assert all(process.running for process in running.values())


def unsettled(world: World) -> int:
    """Committed messages without a final state, whatever was sent twice."""
    [(count,)] = world.query(
        "SELECT count(*) FROM outbox LEFT JOIN outbox_state ON outbox_id = id"
        " WHERE resend_of IS NULL AND coalesce(status, '') NOT IN ('consumed', 'dead')"
    )
    return int(count)


def check_fates(world: World, count: int) -> None:
    """Every message ended as its kind says, after as many attempts, and nothing else has a fate."""
    rows = world.query(
        "SELECT payload->>'message', status, attempts, error_code, count(*) FROM outbox"
        " JOIN outbox_state ON outbox_id = id WHERE resend_of IS NULL GROUP BY 1, 2, 3, 4"
    )
    ended: dict[str, Counter[tuple[Any, ...]]] = {}
    for kind, status, attempts, code, number in rows:
        ended.setdefault(kind if kind in FATES else "sound", Counter())[status, attempts, code] += (
            number
        )
    each = CONVERSATIONS // len(FATES)
    assert ended == {kind: {fate: each} for kind, (_, fate) in FATES.items()} | {
        "sound": {SOUND: count - CONVERSATIONS}
    }
    assert world.query("SELECT count(*) FROM outbox_state") == [(count,)]
    assert world.query("SELECT count(*) FROM outbox_rejects") == [(0,)]


EFFECTS = (
    "(SELECT outbox_id, chat_id, id FROM chat_histories UNION ALL SELECT outbox_id, chat_id, id"
    " FROM frails)"
)


def check_effects(world: World) -> None:
    """What is consumed has one effect, what is dead has none."""
    assert (
        world.query(
            "SELECT outbox_id, status, count(effect.id) FROM outbox_state FULL"
            f" JOIN {EFFECTS} AS effect USING (outbox_id)"
            " GROUP BY 1, 2 HAVING count(effect.id) <> CASE WHEN status = 'consumed' THEN 1 ELSE 0"
            " END"
        )
        == []
    )
    assert (
        world.query(
            "SELECT chat_id, message_count, count(h.id) FROM agent_chats FULL"
            " JOIN chat_histories AS h USING (user_id, chat_id)"
            " GROUP BY 1, 2 HAVING message_count IS DISTINCT FROM count(h.id)"
        )
        == []
    )


def check_order(world: World) -> None:
    """Persisted in the order of enqueueing, and parked where one waited.

    That is so conversation by conversation.
    """
    for order in ("applied", 'partition, "offset"'):
        assert world.query(
            "SELECT count(*) FROM (SELECT id < lag(id) OVER (PARTITION BY outbox.key ORDER BY "
            + order
            + ") AS wrong"
            " FROM outbox JOIN outbox_state ON outbox_id = id WHERE status = 'consumed') AS steps"
            " WHERE wrong"
        ) == [(0,)], order
    assert world.query(
        "SELECT count(*) FROM (SELECT outbox_id < lag(outbox_id) OVER (PARTITION BY chat_id"
        " ORDER BY id) AS wrong FROM chat_histories) AS steps WHERE wrong"
    ) == [(0,)]
    parked = world.query(
        "SELECT DISTINCT o.key FROM outbox AS o JOIN outbox_state ON outbox_id = id"
        " WHERE biz_type = %s AND status = 'consumed' AND arrived IS NOT NULL",
        CHAT,
    )
    # Behind what fails and has an attempt left; behind what nobody knows, unless it had waited long
    # enough on its way.
    kinds = {f"c{one}": list(FATES.values())[one % len(FATES)][0] for one in range(CONVERSATIONS)}
    waited = {key for (key,) in parked}
    assert {key for key, kind in kinds.items() if kind == FRAIL} <= waited
    assert waited <= {key for key, kind in kinds.items() if kind != CHAT}


async def check_audit(world: World, count: int) -> None:
    """The command itself, from the first message to the last."""
    audit = world.start("streams", "audit", "--full", "--json")
    status = await audit.finish(60)
    text = (world.directory / f"streams-{len(world.processes) - 1}.log").read_text()
    assert status == 0, text
    report = json.loads(text)
    assert (report["messages"], report["complete"], report["wrong"]) == (count, True, {}), text
