"""The dead-letter desk on real PostgreSQL: order, guards and records of what operators do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streams import operate
from streams.cli import cli
from streams.database import migrate
from streams.errors import StreamsError, UsageError
from streams.operate import history, operations
from tests.conftest import World
from tests.fixtures.publish import CHAT, enqueue, payload

Run = Callable[..., Result]
ANN = operate.Operator("ann", "a reason")


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this world."""
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments, lines=None: CliRunner().invoke(
        cli, ["dead", *arguments], input=lines, standalone_mode=False
    )


def bury(
    world: World,
    ids: list[int],
    *,
    code: str = "payload",
    error: str = "'user_id': expected int, got str",
) -> None:
    """Messages that are dead, in the order of their ids in one partition."""
    world.query(
        'INSERT INTO outbox_state (outbox_id, status, partition, "offset", attempts, error_code,'
        " error) SELECT id, 'dead', 0, 10 + id, 3, %s, %s FROM unnest(%s::bigint[]) AS id",
        code,
        error,
        ids,
    )


@pytest.fixture
def ids(world: World, run: Run) -> list[int]:
    """Nine dead messages of three conversations."""
    enqueued = enqueue(
        world.url, world.topic, [payload(n, f"c{n % 3}", message="secret-canary") for n in range(9)]
    )
    bury(world, enqueued)
    return enqueued


def actions(world: World) -> list[tuple[Any, ...]]:
    return world.query(
        "SELECT who, act, outbox_id, what->'count', why FROM outbox_actions ORDER BY id"
    )


def resent(world: World) -> list[int]:
    return [
        row[0]
        for row in world.query(
            "SELECT resend_of FROM outbox WHERE resend_of IS NOT NULL ORDER BY id"
        )
    ]


def test_dead_messages_are_listed_without_their_text(run: Run, ids: list[int]) -> None:
    text = run("list").output
    assert "expected int, got str" in text
    assert "canary" not in text
    listed = json.loads(run("list", "--json", "--limit", "4").output)
    assert [one["outbox_id"] for one in listed] == ids[:4]
    assert listed[0] | {"since": "", "fingerprint": ""} == {
        "outbox_id": ids[0], "biz_type": CHAT, "topic": listed[0]["topic"], "key": "c0",
        "attempts": 3, "replays": 0,
        "error_code": "payload", "error": "'user_id': expected int, got str", "held": False,
        "since": "",
        "fingerprint": "",
    }  # fmt: skip


def test_every_filter_filters(run: Run, ids: list[int], world: World) -> None:
    other = enqueue(world.url, world.topic, [payload(1, "c0")], biz_type="other")
    bury(world, other, code="23514", error="CheckViolation (23514)")
    world.query(
        "UPDATE outbox_state SET updated_at = now() - interval '3 hours' WHERE outbox_id = ANY(%s)",
        ids[:2],
    )

    def listed(*arguments: str) -> list[int]:
        return [one["outbox_id"] for one in json.loads(run("list", "--json", *arguments).output)]

    assert listed("--key", "c0") == [ids[0], ids[3], ids[6], *other]
    assert listed("--biz-type", "other") == other
    assert listed("--error", "23514") == other
    assert listed("--since", "1h") == [*ids[2:], *other]
    assert listed("--since", "1h", "--key", "c1", "--error", "payload") == [ids[4], ids[7]]
    assert listed("--key", "nobody") == []
    assert run("list", "--key", "nobody").output == "no dead message fits\n"


def test_errors_are_grouped_by_fingerprint(run: Run, ids: list[int], world: World) -> None:
    more = enqueue(world.url, world.topic, [payload(n, "c9") for n in range(3)])
    for number, one in enumerate(more):
        bury(
            world, [one], code="json", error=f"the value is not JSON: broken at character {number}"
        )
    groups = json.loads(run("list", "--group", "--json").output)
    assert [(one["messages"], one["conversations"], one["error_code"]) for one in groups] == [
        (9, 3, "payload"),
        (3, 1, "json"),
    ]
    chosen = json.loads(run("list", "--json", "--error", groups[1]["fingerprint"]).output)
    assert [one["outbox_id"] for one in chosen] == more
    assert groups[1]["fingerprint"] in run("list", "--group").output


def test_show_tells_the_story_and_the_text_only_when_asked(run: Run, ids: list[int]) -> None:
    text = run("show", str(ids[0])).output
    assert "expected int, got str" in text
    assert "canary" not in text
    assert "secret-canary" in run("show", str(ids[0]), "--payload").output


def test_show_of_a_message_that_is_not_dead_says_so(run: Run, ids: list[int], world: World) -> None:
    world.query("UPDATE outbox_state SET status = 'consumed' WHERE outbox_id = %s", ids[0])
    error = run("show", str(ids[0])).exception
    assert isinstance(error, StreamsError)
    assert str(error).startswith(f"message {ids[0]} is consumed, expected dead")


def test_one_message_is_replayed_as_a_new_row_that_names_its_root(
    run: Run, ids: list[int], world: World
) -> None:
    result = run("replay", str(ids[4]), "--who", "ann", "--why", "fixed")
    assert (result.exception, result.output) == (None, "replayed 1 message\n")
    assert actions(world) == [("ann", "replay", ids[4], 1, "fixed")]
    [(new, same)] = world.query(
        "SELECT again.id, (again.biz_type, again.topic, again.key, again.payload::text)"
        " = (root.biz_type, root.topic, root.key, root.payload::text)"
        " FROM outbox AS again JOIN outbox AS root ON root.id = again.resend_of"
    )
    assert same
    assert world.query(
        "SELECT status, source_id, attempts, replays, topic, key, arrived IS NOT NULL,"
        " next_retry_at, error_code,"
        ' "offset" FROM outbox_state WHERE outbox_id = %s',
        ids[4],
    ) == [("replaying", new, 0, 1, world.topic, "c1", True, None, "payload", 10 + ids[4])]


def test_the_cause_of_a_death_is_told_after_the_message_was_replayed_and_persisted(
    run: Run, ids: list[int], world: World
) -> None:
    """A replay overwrites the state; the story ended with `persisted error=...`."""
    [(at, error)] = world.query(
        "SELECT updated_at, error FROM outbox_state WHERE outbox_id = %s", ids[0]
    )
    assert run("replay", str(ids[0]), str(ids[1]), "--yes").exception is None
    persist = (
        "UPDATE outbox_state SET status = 'consumed', source_id = NULL, applied = 7"
        " WHERE outbox_id = %s"
    )
    world.query(persist, ids[0])
    with migrate.connection(world.settings) as connection:
        first, second = history.messages(connection, ids[:2])
        stages = [(step.stage, step.about.get("error")) for step in first.events]
        assert [stage for stage in stages if stage[0] not in ("enqueued", "relayed")] == [
            ("dead", error), ("replay", None), ("sent again", None), ("persisted", None)
        ]  # fmt: skip
        [died] = [step for step in first.events if step.stage == "dead"]
        assert died.at == at
        assert [step.stage for step in second.events][-1] == "replaying"
        # It failed once more before it was persisted: that is a step of its own.
        connection.rollback()
        world.query(
            "UPDATE outbox_state SET attempts = 2, error_code = '23514', error = 'x'"
            " WHERE outbox_id = %s",
            ids[0],
        )
        [first] = history.messages(connection, ids[:1])
    assert [(step.stage, step.about.get("error_code")) for step in first.events][-2:] == [
        ("failed", "23514"), ("persisted", None)
    ]  # fmt: skip


def test_a_whole_conversation_is_replayed_in_its_order(
    run: Run, ids: list[int], world: World
) -> None:
    # The ids were committed in another order than they were drawn.
    world.query(
        'UPDATE outbox_state SET "offset" = 1000 - outbox_id WHERE outbox_id = ANY(%s)',
        [ids[0], ids[3], ids[6]],
    )
    assert run("replay", "--key", "c0", "--yes").output == "replayed 3 messages\n"
    assert resent(world) == [ids[6], ids[3], ids[0]]
    arrived = world.query(
        "SELECT outbox_id FROM outbox_state WHERE arrived IS NOT NULL ORDER BY arrived"
    )
    assert [row[0] for row in arrived] == [ids[6], ids[3], ids[0]]


def test_arrival_decides_before_the_offset(run: Run, ids: list[int], world: World) -> None:
    for number, one in enumerate((ids[3], ids[6], ids[0])):
        world.query("UPDATE outbox_state SET arrived = %s WHERE outbox_id = %s", number, one)
    run("replay", "--key", "c0", "--yes")
    assert resent(world) == [ids[3], ids[6], ids[0]]


IN_LINE = "SELECT outbox_id FROM outbox_open WHERE key = 'c0' ORDER BY arrived"


def line(world: World) -> list[int]:
    return [row[0] for row in world.query(IN_LINE)]


@pytest.mark.parametrize("together", [True, False])
def test_one_that_no_worker_had_seen_is_not_overtaken_by_what_died_after_it(
    run: Run, ids: list[int], world: World, together: bool
) -> None:
    """No record could carry it, so it never had a place in the line."""
    for place, one in ((-2, ids[3]), (-1, ids[6])):
        world.query("UPDATE outbox_state SET arrived = %s WHERE outbox_id = %s", place, one)
    if together:
        run("replay", "--key", "c0", "--yes")
    else:
        for one in (ids[0], ids[3], ids[6]):
            run("replay", str(one))
    assert resent(world) == line(world) == [ids[0], ids[3], ids[6]]


def test_one_that_no_worker_had_seen_goes_before_the_one_that_holds_its_conversation(
    run: Run, ids: list[int], world: World
) -> None:
    at = "UPDATE outbox_state SET arrived = %s, topic = %s, key = 'c0' WHERE outbox_id = %s"
    world.query(at, -2, world.topic, ids[3])
    world.query(at, -1, world.topic, ids[6])
    world.query("UPDATE outbox_state SET status = 'parked' WHERE outbox_id = %s", ids[6])
    run("replay", "--key", "c0", "--yes")
    assert resent(world) == [ids[0], ids[3]]
    assert line(world) == [ids[0], ids[3], ids[6]]


def test_a_limit_never_leaves_out_an_earlier_message(
    run: Run, ids: list[int], world: World
) -> None:
    assert run("replay", "--all", "--limit", "4", "--yes").output == "replayed 4 messages\n"
    assert resent(world) == [ids[0], ids[3], ids[6], ids[1]]


def test_a_second_replay_takes_the_payload_that_counts(
    run: Run, ids: list[int], world: World
) -> None:
    edited = json.dumps(payload(1, "c0", message="mended"))
    assert run("replay", str(ids[0]), "--payload", "-", lines=edited).output == (
        f"replayed message {ids[0]} with the new payload\n"
    )
    world.query("UPDATE outbox_state SET status = 'dead' WHERE outbox_id = %s", ids[0])
    run("replay", str(ids[0]))
    texts = [
        row[0]
        for row in world.query("SELECT payload->>'message' FROM outbox WHERE resend_of IS NOT NULL")
    ]
    assert texts == ["mended", "mended"]
    assert world.query("SELECT payload->>'message' FROM outbox WHERE id = %s", ids[0]) == [
        ("secret-canary",)
    ]
    edits = world.query("SELECT what->'edited', what->'replaced' FROM outbox_actions ORDER BY id")
    assert edits[0] == (True, ids[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope", "not JSON"),
        (json.dumps(payload(1, "c0", user_id="x")), "'user_id': expected int"),
        (json.dumps(payload(1, "elsewhere")), "'conversation_id' is 'elsewhere', expected 'c0'"),
    ],
)
def test_an_edited_payload_is_checked(
    run: Run, ids: list[int], world: World, text: str, words: str
) -> None:
    error = run("replay", str(ids[0]), "--payload", "-", lines=text).exception
    assert isinstance(error, UsageError)
    assert words in str(error)
    assert resent(world) == []
    assert actions(world) == []


def test_replaying_in_circles_is_refused_without_force(
    run: Run, ids: list[int], world: World
) -> None:
    for _ in range(operate.MOST_REPLAYS):
        assert run("replay", str(ids[0])).exception is None
        world.query("UPDATE outbox_state SET status = 'dead' WHERE outbox_id = %s", ids[0])
    error = run("replay", str(ids[0])).exception
    assert str(error).startswith(f"message {ids[0]} was replayed 3 times already and died again")
    assert run("replay", "--all", "--yes").output == (
        "replayed 8 messages; left alone: 1 replayed too often already (--force)\n"
    )
    assert run("replay", str(ids[0]), "--force").output == "replayed 1 message\n"


def test_a_choice_with_a_message_that_is_not_dead_is_refused_whole(
    run: Run, ids: list[int], world: World
) -> None:
    world.query("UPDATE outbox_state SET status = 'consumed' WHERE outbox_id = %s", ids[1])
    for verb in ("replay", "discard"):
        error = run(verb, *map(str, ids[:3]), "--yes").exception
        assert isinstance(error, operate.NotDead)
        assert str(error) == f"message {ids[1]} is consumed, expected dead: nothing was done"
    assert str(run("replay", "123456789").exception).startswith("message 123456789 is not known")
    assert actions(world) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected outbox ids, a filter, or --all"),
        (["--limit", "5"], "expected outbox ids, a filter, or --all"),
        (["--all"], "would {verb} 9 messages: expected --yes"),
    ],
)
@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_more_than_one_asks_first(
    run: Run, ids: list[int], world: World, verb: str, arguments: list[str], words: str
) -> None:
    error = run(verb, *arguments).exception
    assert isinstance(error, UsageError)
    assert words.format(verb=verb) in str(error)
    assert actions(world) == []


def test_a_dry_run_does_nothing(run: Run, ids: list[int], world: World) -> None:
    shown = ", ".join(str(ids[n]) for n in (0, 3, 6, 1, 4, 7, 2, 5, 8))
    assert run("replay", "--all", "--dry-run").output == f"would replay 9 messages: {shown}\n"
    assert run("discard", "--all", "--dry-run").output == f"would discard 9 messages: {shown}\n"
    assert (resent(world), actions(world)) == ([], [])


def test_discarded_is_final_and_frees_its_conversation(
    run: Run, ids: list[int], world: World
) -> None:
    world.query(
        "UPDATE outbox_state SET topic = %s, key = 'c0', arrived = 1 WHERE outbox_id = %s",
        world.topic,
        ids[0],
    )
    assert (
        run("discard", str(ids[0]), "--why", "spam", "--who", "bob").output
        == "discarded 1 message\n"
    )
    assert world.query(
        "SELECT status, topic, key FROM outbox_state WHERE outbox_id = %s", ids[0]
    ) == [("discarded", None, None)]
    assert actions(world) == [("bob", "discard", ids[0], 1, "spam")]
    assert isinstance(run("replay", str(ids[0])).exception, operate.NotDead)


def test_two_replays_of_one_filter_at_once_replay_once(
    run: Run, ids: list[int], world: World
) -> None:
    """The second waits for the row locks of the first, and then finds nothing dead."""
    settings = world.settings
    with migrate.connection(settings) as first, migrate.connection(settings) as second:
        plans = [operate.plan(each, operate.Choice(key="c0")) for each in (first, second)]
        assert plans[0] == plans[1]
        done: list[operate.Step] = []
        with first.begin():
            first.exec_driver_sql("SELECT FROM outbox_state WHERE status = 'dead' FOR UPDATE")
            waiting = threading.Thread(
                target=lambda: done.extend(
                    operate.replay(second, plans[1], ANN, operate.Choice(key="c0"))
                )
            )
            waiting.start()
            first.exec_driver_sql(
                "UPDATE outbox_state SET status = 'replaying' WHERE outbox_id = %s", (ids[0],)
            )
        waiting.join(30)
        assert done == [operate.Step(2, gone=1)]
        assert list(operate.replay(first, plans[0], ANN, operate.Choice(key="c0"))) == [
            operate.Step(0, gone=3)
        ]
    assert sorted(resent(world)) == [ids[3], ids[6]]
    assert [row[:4] for row in actions(world)] == [("ann", "replay", None, 2)]


def test_yes_means_what_is_dead_when_it_is_done_whoever_else_acts(
    run: Run, ids: list[int], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, steps = operations.submit, iter([ids[:1], ids[1:2]])

    def late(*arguments: Any) -> operations.Operation:
        """Between a preview and its submission somebody else acts."""
        world.query(
            "UPDATE outbox_state SET status = 'consumed' WHERE outbox_id = ANY(%s)", next(steps, [])
        )
        return submit(*arguments)

    monkeypatch.setattr(operations, "submit", late)
    assert run("replay", "--all", "--yes").output == "replayed 7 messages\n"
    assert sorted(resent(world)) == ids[2:]
    bury(world, enqueue(world.url, world.topic, [payload(1, "c0"), payload(2, "c0")]))
    steps = iter([list(range(ids[-1], ids[-1] + 100))])
    assert run("replay", "--all", "--yes").output == "no dead message fits\n"


def test_a_rate_is_kept(run: Run, ids: list[int], world: World) -> None:
    began = time.monotonic()
    assert run("replay", "--all", "--yes", "--rate", "6").output == "replayed 9 messages\n"
    assert 0.9 < time.monotonic() - began < 60
    assert resent(world) == [ids[n] for n in (0, 3, 6, 1, 4, 7, 2, 5, 8)]
    assert [row[3] for row in actions(world)] == [6, 3]


@pytest.mark.parametrize(
    ("count", "limit"), [(5000, 10.0), pytest.param(100_000, 20.0, marks=pytest.mark.long)]
)
def test_many_are_replayed_fast_in_order(run: Run, world: World, count: int, limit: float) -> None:
    began = time.monotonic()
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT 'chat_history_persist', %s, 'c' || n %% 1000, json_build_object('user_id', 1,"
        " 'conversation_id', 'c' || n %% 1000, 'role', 'user', 'message', repeat('x', 250))"
        " FROM generate_series(1, %s) AS n",
        *(world.topic, count),
    )
    world.query(
        'INSERT INTO outbox_state (outbox_id, status, partition, "offset", error_code, error)'
        " SELECT id, 'dead', 0, id, 'payload', 'broken' FROM outbox"
    )
    filled = time.monotonic() - began
    began = time.monotonic()
    assert run("replay", "--all", "--yes").output == f"replayed {count:,} messages\n"
    seconds = time.monotonic() - began
    assert world.query(
        "SELECT count(*) FROM (SELECT resend_of < lag(resend_of) OVER (PARTITION BY key"
        " ORDER BY id) AS wrong FROM outbox WHERE resend_of IS NOT NULL) AS steps WHERE wrong"
    ) == [(0,)]
    # Where others keep the machine busy, in proportion to making them.
    assert seconds < max(limit, 8 * filled), f"{seconds:.1f} s, {filled:.1f} s to make them"
