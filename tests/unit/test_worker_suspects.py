"""Who is charged for the death of a process: at most six deaths a guilty message, and never another one."""

from __future__ import annotations

import random

import pytest

from tests.fixtures.crashes import TOPIC, Plan, Simulation


def check(plan: Plan) -> Simulation:
    """Carry it out: the killers are dead after six deaths at most, everything else is persisted."""
    done = Simulation(plan).run()
    killers = {(partition, offset) for (_, partition), some in plan.killers.items() for offset in some}
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
        killers.setdefault((TOPIC, chance.randrange(partitions)), set()).add(chance.randrange(messages))
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
