"""Everything that may happen to messages, in any order, against a model.

It happens on the real transaction and a real database. After each step states, order and effects
are what the model says; in the end everything is settled and the audit is clean.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from streams import operate as operations
from streams.relay.leader import sweep
from streams.worker.driver.runs import Run
from streams.worker.failure.isolate import Isolation
from streams.worker.run import attempt, decide, persister, pipeline
from streams.worker.run.attempt import Attempt
from streams.worker.run.decide import Decision, Fact, decision_on
from streams.worker.run.transaction import Transaction
from tests.fixtures.listed import PARTITIONS, TOPIC
from tests.fixtures.model import Told
from tests.fixtures.simulation import OLD, Bench, Fragile
from tests.fixtures.stage import MISDEEDS, OUTAGES, Stage

KEYS = st.sampled_from("aaabd")
SOME = st.lists(st.sampled_from(["plain", "plain", "held", "nobodys"]), min_size=1, max_size=4)
NATURES = st.sampled_from(["good", "fault", "fault", "unreadable"])
FAULTS = st.sampled_from(
    ["raise", "later", "reject", "P0001", "23514", "swallow", "cancel", "wrap"]
)
WAYS = st.sampled_from(
    ["now"] * 5 + ["kept", "lost", "null", "broken", "no key", "not json", "another life"]
)
ACTS = ["replay", "replay", "replay conversation", "edit", "edit", "discard", "release"]


class Fates(RuleBasedStateMachine):
    """What may happen."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(self.bench)

    @initialize(
        loads=st.lists(
            st.tuples(KEYS, SOME, NATURES, st.integers(0, 3), FAULTS), min_size=2, max_size=4
        )
    )
    def begin(self, loads: list[tuple[str, list[str], str, int, str]]) -> None:
        """Something is there to begin with."""
        for load in loads:
            self.enqueue(*load, "now")

    @rule(key=KEYS, kinds=SOME, nature=NATURES, at=st.integers(0, 3), fault=FAULTS, how=WAYS)
    def enqueue(
        self, key: str, kinds: list[str], nature: str, at: int, fault: str, how: str
    ) -> None:
        """Some messages of one conversation, of which one may be bad.

        Usually published at once, and whole.
        """
        for place, kind in enumerate(kinds):
            bad = nature if place == at % len(kinds) else "good"
            self.stage.insert(self.bench.connection, key, kind, readable=bad != "unreadable")
            if bad == "fault":
                self.bench.handler.faults[self.stage.name()] = fault
        self.stage.send(self.stage.committed(), how, at)

    @rule(key=KEYS, commits=st.booleans())
    def enqueue_at_once(self, key: str, commits: bool) -> None:
        """Two transactions: the one that drew its id first commits last, or not at all."""
        with self.bench.another() as slow:
            early = self.stage.insert(slow, key, "plain")
            self.stage.insert(self.bench.connection, key, "plain")
            if not commits:
                slow.rollback()
                self.stage.model.rolled_back(early)
        self.stage.send(sorted(self.stage.committed(), key=lambda row: row.id == early))

    @rule(
        what=st.sampled_from(["kept", "again", "found", "forged"]),
        count=st.integers(1, 6),
        key=KEYS,
    )
    def relay(self, what: str, count: int, key: str) -> None:
        """Publish what was kept; begin again from the confirmed position.

        Or what was lost, or never was, turns up.
        """
        if what == "forged":
            self.stage.forge(key)
            return
        source = {
            "kept": self.stage.kept,
            "again": self.stage.sent[-count:],
            "found": self.stage.lost,
        }[what]
        rows = source[:count]
        del source[:count]
        for row in rows:
            self.stage.publish(row)

    @rule(again=st.booleans())
    def recreate_topic(self, again: bool) -> None:
        """Somebody deletes the topic and makes it again.

        The relay may begin from its confirmed position.
        """
        self.stage.recreate_topic()
        if again:
            self.relay("again", 6, "a")

    @rule()
    def sweep(self) -> None:
        """Nobody has to wait two minutes here."""
        self.stage.sweep_all()

    @rule()
    def deliver_everything(self) -> None:
        """As it should be."""
        for number in self.stage.log.partitions:
            if (run := self.stage.next_run(number, 1000)) is not None:
                self.stage.persist(0, run)

    @rule(
        number=st.sampled_from([0, 0, 1]),
        size=st.sampled_from([1, 2, 3, 100, 100]),
        worker=st.sampled_from([0, 0, 1, OLD]),
        how=st.sampled_from(
            ["acked"] * 4 + ["not acked", "together", "crash", *OUTAGES, *MISDEEDS]
        ),
        at=st.integers(1, 8),
    )
    def deliver(self, number: int, size: int, worker: int, how: str, at: int) -> None:
        """Deliver one run.

        The process may die in it, or after its commit, and the database may go away once.
        """
        run, other = self.stage.next_run(number, size), self.stage.next_run(1 - number, size)
        if run is not None and other is not None and how == "together":
            self.stage.persist_together(worker, [run, other])
        elif run is not None:
            self.stage.persist(worker, run, how, at)

    @rule(
        number=st.sampled_from([0, 0, 1]),
        when=st.sampled_from(["before", "inside", "dies inside", "operator"]),
        start=st.integers(0, 30),
        sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)),
        act=st.sampled_from(ACTS),
    )
    def freeze(self, number: int, when: str, start: int, sizes: tuple[int, int], act: str) -> None:
        """An owner is frozen, before its transaction or inside it.

        The next one works meanwhile, or an operator acts.
        """
        if when == "before":
            if pipeline := self.stage.log.partitions[number][: self.stage.reached[number]][
                start : start + sizes[0]
            ]:
                self.stage.persist(1, Run(TOPIC, number, pipeline), "not acked")
            return
        old, new = (self.stage.next_run(number, size) for size in sizes)
        if old is not None and when == "operator":
            self.stage.persist_frozen(old, act=lambda dead: self._act(act, dead, start, None))
        elif old is not None:
            self.stage.persist_frozen(old, new, dies=when == "dies inside")

    @rule(
        keys=st.sets(KEYS, min_size=1),
        due=st.booleans(),
        most=st.sampled_from([1, 3, 1000]),
        dies_in=st.sampled_from([0, 0, 0, 2, 3, 4]),
        worker=st.sampled_from([0, 0, OLD]),
    )
    def wake(self, keys: set[str], due: bool, most: int, dies_in: int, worker: int) -> None:
        """Wake-up calls, perhaps when the time for every retry has come.

        Too many or too early ones cost nothing.
        """
        if due:
            self.stage.all_due()
        for number in (0, 1):
            if mine := sorted(key for key in keys if PARTITIONS[key] == number):
                self.stage.wake_up(mine, most, dies_in, worker)

    @rule(at=st.integers(0, 30))
    def mend(self, at: int) -> None:
        """What was wrong with one message is wrong no more."""
        faults = self.bench.handler.faults
        if faults:
            del faults[sorted(faults)[at % len(faults)]]

    @rule(act=st.sampled_from(ACTS), at=st.integers(0, 5), fault=st.none() | FAULTS, how=WAYS)
    def operate(self, act: str, at: int, fault: str | None, how: str) -> None:
        """Something is done about one dead message, or its conversation."""
        self._act(act, self.stage.model.dead(), at, fault, how)

    @invariant()
    def the_database_is_as_the_model_says(self) -> None:
        """After each step."""
        self.stage.compare()

    def teardown(self) -> None:
        """What went well is drained; an error there would only hide the first one."""
        if sys.exc_info()[0] is None:
            self.stage.drain()

    def _act(
        self, act: str, dead: list[Told], at: int, fault: str | None, how: str = "now"
    ) -> None:
        if not dead:
            return
        one = dead[at % len(dead)]
        match act:
            case "replay":
                self.stage.replay([one.root], operations.Choice(ids=[one.root]), force=True)
            case "replay conversation":
                line = sorted(
                    (each for each in dead if each.key == one.key), key=lambda each: each.line or 0
                )
                self.stage.replay(
                    [each.root for each in line], operations.Choice(key=one.key), force=False
                )
            case "edit" if one.kind.known:
                self.stage.edit(one, fault)
            case "discard":
                self.stage.discard(one)
            case "release":
                self.stage.release(one.key, dead)
        self.stage.send(self.stage.committed(), how)


@pytest.fixture
def bench(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A database and its workers, whose processes can die and whose waits are short."""
    monkeypatch.setattr(attempt, "Transaction", Fragile)
    monkeypatch.setattr(persister, "MOST_WAIT", 0.001)
    monkeypatch.setattr(sweep, "PATIENCE", -10.0)
    monkeypatch.setattr(
        logging.root.manager, "disable", logging.CRITICAL
    )  # a falsifying example is long enough
    with Bench(database) as found:
        yield found


def play(bench: Bench, examples: int, **options: Any) -> None:
    """So many examples; what fails is printed as the steps that lead there."""
    machine = type("Fates", (Fates,), {"bench": bench})
    own: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
        "print_blob": True,
    }
    steps = settings(max_examples=examples, stateful_step_count=40, **own, **options)
    run_state_machine_as_test(machine, settings=steps)


@pytest.mark.timeout(600)  # a failure is made small first
def test_whatever_happens_the_database_is_as_the_model_says(bench: Bench) -> None:
    play(bench, 15, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_whatever_happens_at_length(bench: Bench) -> None:
    play(bench, 3000)


def test_order_is_not_judged_across_the_lives_of_a_topic(bench: Bench) -> None:
    """A record that lost its key was rejected; a new topic brings its message late."""
    fates = type("Fates", (Fates,), {"bench": bench})()
    fates.begin([("a", ["plain", "plain"], "good", 0, "raise")])
    fates.enqueue("a", ["plain", "plain"], "good", 0, "raise", "no key")
    fates.deliver_everything()
    fates.recreate_topic(again=True)
    fates.stage.drain()


def test_what_is_rejected_of_a_topic_made_anew_is_noted_where_another_was(bench: Bench) -> None:
    """Offsets begin anew: the same one had been rejected in the topic of before."""
    fates = type("Fates", (Fates,), {"bench": bench})()
    fates.begin([("a", ["plain"], "good", 0, "raise")])
    fates.relay("forged", 1, "a")
    fates.deliver_everything()
    rejected = set(fates.stage.model.rejected)
    fates.recreate_topic(again=False)
    fates.enqueue("a", ["plain"], "good", 0, "raise", "now")
    fates.relay("forged", 1, "a")
    fates.deliver_everything()
    fates.the_database_is_as_the_model_says()
    assert fates.stage.model.rejected == rejected != set()


def test_order_is_not_judged_by_an_offset_whose_life_nobody_knows(bench: Bench) -> None:
    """Two wait in the topic's second life, and go on in its third, which brings earlier ones."""
    fates = type("Fates", (Fates,), {"bench": bench})()
    fates.begin([("a", ["plain", "plain"], "good", 0, "raise")])
    unread = list(fates.stage.sent)
    fates.recreate_topic(again=False)
    fates.enqueue("a", ["plain", "plain"], "fault", 0, "raise", "now")
    fates.deliver_everything()
    fates.recreate_topic(again=False)
    fates.mend(0)
    fates.wake({"a"}, due=True, most=1000, dies_in=0, worker=0)
    for row in unread:
        fates.stage.publish(row)
    fates.deliver_everything()
    fates.stage.drain()


def _decides(
    status: str | None,
    wrong: Decision,
    when: Callable[[int, Fact], bool] = lambda record, fact: True,
) -> Any:
    """A policy that decides this for messages of that status."""

    def decided(record_id: int, outbox_id: int, fact: Fact, *, blocked: bool) -> Decision:
        right = decision_on(record_id, outbox_id, fact, blocked=blocked)
        return wrong if fact.known and fact.status == status and when(record_id, fact) else right

    return decide, "decision_on", decided


def _independent(unclear: Sequence[Any], deliveries: Sequence[Any]) -> list[Any]:
    return [delivery for delivery in deliveries if delivery.fault is None and not delivery.resend]


async def _backwards(self: Transaction, fates: Sequence[Any]) -> list[Any]:
    return await _set_aside(self, list(reversed(fates)))


async def _silent(attempt: Attempt, turns: Any) -> set[int]:
    reclaimed = await _reclaim(attempt, turns)
    attempt.outcome.woken.clear()
    return reclaimed


_set_aside, _reclaim = Transaction.set_aside, pipeline.reclaim
LONG = pytest.mark.long


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(_decides("parked", Decision.AGAIN), id="a parked message overtakes"),
        pytest.param(_decides(None, Decision.NEW), id="nothing is parked"),
        pytest.param(_decides("consumed", Decision.AGAIN), id="consumed again", marks=LONG),
        pytest.param(
            (Isolation, "_without_blocked", lambda self, piece: list(piece)),
            id="past one that failed",
        ),
        pytest.param(
            (Transaction, "set_aside", _backwards), id="parked in the wrong order", marks=LONG
        ),
        pytest.param((pipeline, "reclaim", _silent), id="nobody is woken", marks=LONG),
        pytest.param((pipeline, "UNKNOWN", ""), id="left to whoever knows it", marks=LONG),
        pytest.param((decide, "UNKNOWN", ""), id="waits for ever for who knows it", marks=LONG),
        pytest.param(_decides("dead", Decision.AGAIN), id="dead and consumed", marks=LONG),
        pytest.param(
            _decides("discarded", Decision.AGAIN), id="discarded and consumed", marks=LONG
        ),
        pytest.param(
            _decides("retrying", Decision.AGAIN, lambda _, fact: fact.first),
            id="retried too early",
            marks=LONG,
        ),
        pytest.param(
            _decides("replaying", Decision.AGAIN, lambda _, fact: fact.first),
            id="a late original",
            marks=LONG,
        ),
        pytest.param(
            _decides("replaying", Decision.AGAIN, lambda row, fact: row == fact.source_id),
            id="a replay overtakes",
            marks=LONG,
        ),
        pytest.param(
            (pipeline, "independent_of", _independent),
            id="claimed in another order than handled",
            marks=LONG,
        ),
    ],
)
@pytest.mark.timeout(600)
def test_a_mutant_that_breaks_a_rule_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mutant: tuple[Any, str, Any]
) -> None:
    monkeypatch.setattr(*mutant)
    with pytest.raises(AssertionError):
        play(bench, 1000, derandomize=True, phases=[Phase.generate])
