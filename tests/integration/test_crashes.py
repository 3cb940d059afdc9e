"""Messages that take their process down, on the product.

Each costs itself, after six deaths at most.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.dev.process import Process
from tests.conftest import Eventually, World
from tests.fixtures.notes import Notes


@pytest.fixture
def world_of(world: World, tmp_path: Path) -> Callable[..., Notes]:
    """Notes in so many partitions.

    Workers commit seldom and are missed soon when they die.
    """

    def make(partitions: int, **environ: str) -> Notes:
        world.environ |= {
            "STREAMS_WORKER__SESSION_TIMEOUT": "3",
            "STREAMS_WORKER__COMMIT_INTERVAL": "30",
            **environ,
        }
        return Notes(world, tmp_path, partitions=partitions)

    return make


class Supervisor:
    """Starts workers again when they die, and counts how often that was."""

    def __init__(self, notes: Notes, count: int) -> None:
        self._notes = notes
        self._workers: list[Process] = [notes.world.worker() for _ in range(count)]
        self.deaths = 0

    def look(self) -> None:
        """Once."""
        for place, worker in enumerate(self._workers):
            if not worker.running:
                self.deaths += 1
                self._workers[place] = self._notes.world.worker()

    def settled(self, ids: list[int]) -> bool:
        """Whether each of these has its fate; who died is started again."""
        self.look()
        return set(self._notes.states(ids).values()) == {"consumed", "dead"}


def check(notes: Notes, ids: list[int], killers: list[int], deaths: int) -> None:
    """The killers are dead, for that.

    Everything else is consumed, and no note is left of anybody.
    """
    assert notes.states(ids) == {**dict.fromkeys(ids, "consumed"), **dict.fromkeys(killers, "dead")}
    codes = notes.world.query("SELECT DISTINCT error_code FROM outbox_state WHERE status = 'dead'")
    assert codes == [("crash",)]
    assert deaths <= 6 * len(killers)
    assert notes.world.query("SELECT count(*) FROM outbox_message_crashes WHERE crashes > 0") == [
        (0,)
    ]


async def test_a_message_that_kills_its_process_costs_one_message_and_six_deaths(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    """Behind others that are known by then and uncommitted in Kafka.

    Beside slow ones in other partitions.
    """
    notes = world_of(4, STREAMS_WORKER__RUN_RECORDS="100")
    killed = notes.enqueue(
        "a", *[f"a{n}" for n in range(250)], "die late:a", *[f"A{n}" for n in range(50)]
    )
    slow = [one for n in range(12) for one in notes.enqueue(f"b{n}", f"slow:{n}")]
    ids = killed + slow
    notes.publish(ids)
    supervisor = Supervisor(notes, 1)
    await eventually(lambda: supervisor.settled(ids), 240, every=0.2)
    check(notes, ids, [killed[250]], supervisor.deaths)
    assert notes.saved("a") == [f"a{n}" for n in range(250)] + [f"A{n}" for n in range(50)]


# What reading a payload runs: here it ends the process, or never ends.
DEADLY = """
    def __post_init__(self):
        if self.note.startswith("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.note.startswith("endless"):
            time.sleep(1000)
"""


async def read_deadly(
    world_of: Callable[..., Notes], eventually: Eventually, kind: str, partitions: int
) -> None:
    notes = world_of(partitions, STREAMS_WORKER__RUN_RECORDS="40")
    module = Path(notes.world.environ["PYTHONPATH"]) / "notebook" / "__init__.py"
    module.write_text(module.read_text().replace("    note: str\n", "    note: str\n" + DEADLY, 1))
    killed = notes.enqueue(
        "a", *[f"a{n}" for n in range(60)], f"{kind}: a", *[f"A{n}" for n in range(20)]
    )
    ids = killed + [one for n in range(8) for one in notes.enqueue(f"b{n}", f"b{n}")]
    notes.publish(ids)
    supervisor = Supervisor(notes, 1)
    await eventually(lambda: supervisor.settled(ids), 280, every=0.2)
    check(notes, ids, [killed[60]], supervisor.deaths)
    assert notes.saved("a") == [f"a{n}" for n in range(60)] + [f"A{n}" for n in range(20)]


async def test_a_message_that_kills_whoever_reads_it_costs_one_message_and_six_deaths(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    """Nothing was noted before a payload was read: it took one worker after the other down."""
    await read_deadly(world_of, eventually, "deadly", 2)


@pytest.mark.long
async def test_a_message_that_is_read_without_end_costs_one_message_and_six_deaths(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    def impatient(partitions: int, **environ: str) -> Notes:
        limits = {"STREAMS_WORKER__HANDLER_TIMEOUT": "2", "STREAMS_WORKER__LOCK_TIMEOUT": "1"}
        return world_of(partitions, **limits, **environ)

    await read_deadly(impatient, eventually, "endless", 2)


async def test_a_worker_that_is_told_to_end_while_a_slow_message_is_worked_has_not_died_of_it(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    await told_to_end(world_of(1), eventually, 2)


@pytest.mark.long
async def test_six_workers_that_are_told_to_end_while_a_slow_message_is_worked_have_not_died_of_it(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    await told_to_end(world_of(1), eventually, 6)


async def told_to_end(notes: Notes, eventually: Eventually, times: int) -> None:
    """SIGTERM, so many times, while the first run's handler is called."""
    [slow] = notes.send("a", "hang:a")
    crashes = "SELECT count(*) FROM outbox_partition_crashes WHERE crashes > 0"
    for _ in range(times):
        worker = notes.world.worker()
        await eventually(lambda: notes.world.query(crashes) == [(1,)], 60)
        await worker.stop(signal.SIGTERM, 10)
        assert notes.world.query(crashes) == [(0,)]
    assert notes.states() == {}
    assert notes.world.query("SELECT count(*) FROM outbox_message_crashes") == [(0,)]
    assert slow


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "size"), [(1100, 20_000), (5000, 10)])
async def test_a_killer_among_large_messages_or_far_behind_costs_one_message_and_six_deaths(
    world_of: Callable[..., Notes], eventually: Eventually, count: int, size: int
) -> None:
    notes = world_of(1)
    texts = [f"n{n}:" + "x" * size for n in range(count)]
    killer = count * 7 // 10
    texts[killer] = "die:"
    ids = notes.send("a", *texts)
    supervisor = Supervisor(notes, 1)
    await eventually(lambda: supervisor.settled(ids), 600, every=0.2)
    check(notes, ids, [ids[killer]], supervisor.deaths)
    texts.pop(killer)
    assert notes.saved("a") == texts


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_two_killers_in_two_partitions_of_two_workers_cost_two_messages(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    notes = world_of(4)
    ids = [
        one for n in range(40) for one in notes.enqueue(f"b{n}", *[f"{n}-{m}" for m in range(5)])
    ]
    killers = notes.enqueue("b1", "die late:1") + notes.enqueue("b6", "die late:6")
    ids += killers + [
        one
        for n in range(40)
        for one in notes.enqueue(f"b{n}", *[f"slow:{n}-{m}" for m in range(2)])
    ]
    notes.publish(ids)
    places = Supervisor(notes, 2)
    await eventually(lambda: places.settled(ids), 600, every=0.2)
    check(notes, ids, killers, places.deaths)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_killer_that_is_a_retry_costs_one_message_and_six_deaths(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    """It comes at other offsets each time, from another topic.

    And those parked behind it wait for their turn.
    """
    notes = world_of(2)
    worker = notes.world.worker()
    notes.fail("die late:a")
    ids = notes.send("a", "a0")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    await worker.stop()
    ids += notes.send("a", "later:a1", "die late:a", "a2") + notes.send(
        "b", *[f"b{n}" for n in range(20)]
    )
    supervisor = Supervisor(notes, 1)
    await eventually(lambda: supervisor.settled(ids), 600, every=0.2)
    check(notes, ids, [ids[2]], supervisor.deaths)
    assert notes.saved("a") == ["a0", "later:a1", "a2"]


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_handler_that_blocks_its_process_is_a_killer_too(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    """The watchdog ends the process, with exit code 70: a death like any other."""
    notes = world_of(1, STREAMS_WORKER__HANDLER_TIMEOUT="1", STREAMS_WORKER__LOCK_TIMEOUT="0.5")
    ids = notes.send("a", "a0", "block:a1", "a2")
    supervisor = Supervisor(notes, 1)
    await eventually(lambda: supervisor.settled(ids), 600, every=0.2)
    check(notes, ids, [ids[1]], supervisor.deaths)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_no_message_dies_of_workers_that_are_killed_again_and_again(
    world_of: Callable[..., Notes], eventually: Eventually
) -> None:
    """By an operator, or for want of memory that no message took: each time at another moment."""
    notes = world_of(4)
    ids = [
        one
        for n in range(400)
        for one in notes.enqueue(f"b{n}", f"slow:{n}" if n % 40 == 0 else f"{n}")
    ]
    notes.publish(ids)
    for wait in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8):
        worker = notes.world.worker()
        noted = (
            "SELECT 1 FROM outbox_partition_crashes WHERE crashes > 0 UNION ALL SELECT 1"
            " FROM outbox_message_crashes"
        )
        await eventually(
            lambda noted=noted: notes.world.query(noted) or notes.all(ids, "consumed"),
            60,
            every=0.005,
        )
        await asyncio.sleep(wait)
        worker.kill()
    notes.world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 120)
