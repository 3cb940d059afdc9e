"""Who is charged for the death of a process.

At most six deaths for each guilty message, and never another one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from streams.worker.driver.dispatcher import Slots
from streams.worker.driver.runs import Run
from streams.worker.driver.suspicion import Strikes
from streams.worker.run.exclusion import Exclusion
from streams.worker.run.suspects import Place, Suspects
from tests.fixtures.crashes import TOPIC, Plan, Simulation


def check(plan: Plan) -> Simulation:
    """Carry it out: the killers are dead after six deaths at most, everything else is persisted."""
    done = Simulation(plan).run()
    killers = {
        (partition, offset) for (_, partition), some in plan.killers.items() for offset in some
    }
    dead = {where for where, fate in done.stored.fates.items() if fate == "dead"}
    assert dead == killers, plan
    assert all(deaths <= 6 for deaths in done.deaths.values()), (done.deaths, plan)
    return done


def planned(seed: int) -> Plan:
    """One of many timings."""
    chance = random.Random(seed)
    partitions = chance.choice([1, 2, 4, 16, 64])
    messages = chance.choice([30, 300, 1500])
    killers: dict[tuple[str, int], set[int]] = {}
    for _ in range(chance.choice([1, 1, 2, 3])):
        killers.setdefault((TOPIC, chance.randrange(partitions)), set()).add(
            chance.randrange(messages)
        )
    return Plan(
        seed=seed,
        partitions=partitions,
        messages=messages if partitions < 16 else min(messages, 100),
        killers={
            place: {one % (messages if partitions < 16 else min(messages, 100)) for one in some}
            for place, some in killers.items()
        },
        processes=chance.choice([1, 1, 2, 3]),
        run=chance.choice([50, 500]),
        size=chance.choice([300, 300, 20_000, 60_000]),
        hang=chance.uniform(0.05, 0.5),
        each=chance.choice([0.00003, 0.0003, 0.002]),
        slow=chance.choice([0, 0, 0.2]),
        commit=chance.choice([1, 2.8, 10, 30]),
        kills=chance.choice([0, 0, 2, 5]),
        terms=chance.choice([0, 0, 2, 6]),
        waits=chance.choice([0, 0, 0.2]),
    )


def test_a_killer_costs_six_deaths_and_nobody_else_dies() -> None:
    for seed in (0, 2, 4, 7, 8, 15, 18, 22, 23):
        check(planned(seed))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("some", range(8))
def test_a_killer_costs_six_deaths_whatever_the_timing(some: int) -> None:
    for seed in range(100 + some * 50, 150 + some * 50):
        check(planned(seed))


def test_a_start_with_many_partitions_takes_two_small_commits_each() -> None:
    """Of four round trips, none of which waits for Kafka."""
    done = check(Plan(seed=1, partitions=128, messages=1, each=0.0, commit=30.0))
    assert done.ended < 4


class Contested:
    """Notes in which another owner takes the partition once, before anything is put."""

    def __init__(self) -> None:
        self.owner, self.before = "", iter(["another group's"])

    async def take(self, owner: str, places: Sequence[Place]) -> dict[Place, Strikes]:
        """Make them this owner's: nobody noted anything."""
        self.owner = owner
        return {}

    async def put(self, owner: str, place: Place, strikes: Strikes, offset: int) -> bool:
        """Whether the partition is this owner's."""
        self.owner = next(self.before, self.owner)
        return owner == self.owner


async def test_a_partition_that_another_group_took_is_taken_again_within_the_try() -> None:
    """Each gave the partition's lock up to begin again.

    The other one took the partition meanwhile, for ever.
    """
    suspects = Suspects(cast("Any", Contested()), Exclusion(Slots(1)), 500, 1_000_000)
    suspects.assigned([("t", 0)])
    suspicion = suspects.of("t", 0)
    assert suspicion is not None
    await suspects.take(suspicion)
    first = suspicion.owner
    async with (
        suspects.trying(Run("t", 0, [SimpleNamespace(offset=0)]), "t", suspicion) as trial,
        trial.permitted(),
    ):
        await trial.begin([cast("Any", SimpleNamespace(offset=0, outbox_id=1))], {})
    assert suspicion.owner != first
