"""The mutation test of the audit.

Every kind of corruption, done to a system that is clean, is found and named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from streams.audit.topics import Topics
from streams.registry import Registry, configured
from streams.settings import Settings
from tests.conftest import World
from tests.integration.audit.conftest import SLOW
from tests.integration.audit.spoil import HIDE, SWAP_APPLIED, Report, chat, lose_a_replay, named

Spoil = Callable[[World], int]


def sql(statement: str, key: str = "c3", at: int = 10) -> Spoil:
    """A statement with %(id)s, a message in the middle of a conversation.

    %(next)s is the one after it.
    """

    def spoil(copy: World) -> int:
        ids = chat(copy, key)
        with psycopg.connect(copy.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), {"id": ids[at], "next": ids[at + 1]})
            assert cursor.rowcount != 0
        return ids[at]

    return spoil


def status(found: str, becomes: str = "") -> Spoil:
    """Change one message that is in a status.

    It may be none that the first statement would take.
    """

    def spoil(copy: World) -> int:
        [(one,)] = copy.query(
            "SELECT outbox_id FROM outbox_state WHERE status = %s ORDER BY 1 LIMIT 1", found
        )
        if becomes:
            copy.query(f"UPDATE outbox_state SET {becomes} WHERE outbox_id = %s", one)
        return int(one)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One after the other; the first names the message."""

    def spoil(copy: World) -> int:
        first, *_ = [each(copy) for each in spoils]
        return first

    return spoil


SWAP_TEXT = (
    "UPDATE chat_histories AS h SET message_content = o.message_content FROM chat_histories AS o"
    " WHERE (h.outbox_id, o.outbox_id) IN ((%(id)s, %(next)s), (%(next)s, %(id)s))"
)
UNIQUE = sql("ALTER TABLE chat_histories DROP CONSTRAINT chat_histories_message")
COLUMNS = "source, user_id, chat_id, role, message_content, tokens_consumed, created_at"
DOUBLE = (
    f"INSERT INTO chat_histories (outbox_id, {COLUMNS}) SELECT {{}}, {COLUMNS}"
    " FROM chat_histories WHERE outbox_id = %(id)s"
)
RESEND = (
    "INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
    " SELECT biz_type, topic, key, payload, {} FROM outbox WHERE id = %(id)s"
)


def phantom(copy: World) -> int:
    """An effect of a message that was rolled back."""
    [(one,)] = copy.query("SELECT nextval('outbox_id_seq')")
    copy.query(HIDE)
    ids = chat(copy)
    copy.query(
        f"INSERT INTO chat_histories (outbox_id, {COLUMNS}) SELECT %s, {COLUMNS}"
        " FROM chat_histories WHERE outbox_id = %s",
        one,
        ids[0],
    )
    return int(one)


def table_gone(copy: World) -> int:
    """The counters' table is not there any more."""
    copy.query("ALTER TABLE agent_chats RENAME TO agent_chats_of_old")
    return 0


def forget_effect(copy: World) -> int:
    """The effect that lost its state."""
    copy.query(
        "DELETE FROM chat_histories AS h WHERE NOT EXISTS (SELECT FROM outbox_state AS s"
        " WHERE s.outbox_id = h.outbox_id) AND chat_id <> 'direct'"
    )
    return 0


def reorder_effects(copy: World) -> int:
    """Two effects change places, text and all."""
    one, other = chat(copy)[10:12]
    copy.query(
        "ALTER TABLE chat_histories ALTER id DROP IDENTITY, DROP CONSTRAINT chat_histories_pkey"
    )
    copy.query(
        "UPDATE chat_histories AS h SET id = o.id FROM chat_histories AS o"
        " WHERE (h.outbox_id, o.outbox_id) IN ((%s, %s), (%s, %s))",
        one,
        other,
        other,
        one,
    )
    return other


LONG_AGO = "UPDATE outbox SET created_at = created_at - interval '2 hours' WHERE id = %s"
SILENT = "UPDATE relay_position SET heartbeat = now() - interval '2 hours'"


def unpublished(copy: World) -> int:
    """The first message above the floor was written two hours ago."""
    [(one,)] = copy.query(
        "SELECT min(id) FROM outbox WHERE id > (SELECT max(floor) FROM relay_position)"
    )
    copy.query(LONG_AGO, one)
    return int(one)


def silent(copy: World) -> int:
    """No relay has led for two hours."""
    copy.query(SILENT)
    return 0


def unread(copy: World) -> int:
    """The last message that was published was written two hours ago.

    No worker has come to it.
    """
    [(one,)] = copy.query("SELECT max(id) FROM outbox WHERE key = %s", SLOW)
    copy.query(LONG_AGO, one)
    return int(one)


def other_key(copy: World) -> int:
    """A row written directly, in another conversation than its payload says.

    It is among those that are not published yet.
    """
    [(one,)] = copy.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT biz_type, topic, 'OTHER', payload FROM outbox WHERE id = (SELECT max(id)"
        " FROM outbox) RETURNING id"
    )
    # Seen by the audit, and persisted like any other.
    copy.query(
        'INSERT INTO outbox_state (outbox_id, status, partition, "offset", arrived) VALUES (%s,'
        " 'dead', 0, -1, 1)",
        one,
    )
    copy.query(HIDE)
    return int(one)


# What is done, the kinds that name it (the first one names the message), and how.
MUTATIONS: dict[str, tuple[str, Spoil]] = {
    "the effect is deleted": (
        "no_effect wrong_tally",
        sql("DELETE FROM chat_histories WHERE outbox_id = %(id)s"),
    ),
    "the last effect is deleted": (
        "no_effect wrong_tally",
        sql("DELETE FROM chat_histories WHERE outbox_id = %(id)s", at=-2),
    ),
    "the state is deleted": (
        "unclaimed_effect",
        sql("DELETE FROM outbox_state WHERE outbox_id = %(id)s"),
    ),
    "state and effect are deleted": (
        "skipped wrong_tally",
        both(
            sql("DELETE FROM outbox_state WHERE outbox_id = %(id)s"),
            forget_effect,
        ),
    ),
    "the outbox row is deleted": (
        "rowless_state phantom_effect",
        sql("DELETE FROM outbox WHERE id = %(id)s"),
    ),
    "the effect is doubled": (
        "doubled_effect reordered_effect wrong_tally",
        both(UNIQUE, sql(DOUBLE.format("%(id)s"))),
    ),
    "an effect of nothing": ("phantom_effect wrong_tally missing", phantom),
    "an effect of an id never drawn": ("phantom_effect wrong_tally", sql(DOUBLE.format("9999999"))),
    "two texts are swapped": ("altered_effect", sql(SWAP_TEXT)),
    "a text is cut": (
        "altered_effect",
        sql(
            "UPDATE chat_histories SET message_content = left(message_content, 2)"
            " WHERE outbox_id = %(id)s"
        ),
    ),
    "a field is nulled": (
        "altered_effect",
        sql("UPDATE chat_histories SET tokens_consumed = NULL WHERE outbox_id = %(id)s"),
    ),
    "an effect moves to another chat": (
        "altered_effect wrong_tally",
        sql("UPDATE chat_histories SET chat_id = 'c4' WHERE outbox_id = %(id)s"),
    ),
    "a time is changed": (
        "altered_effect",
        sql(
            "UPDATE chat_histories SET created_at = created_at + interval '1 ms'"
            " WHERE outbox_id = %(id)s"
        ),
    ),
    "two effects change places": ("reordered_effect", reorder_effects),
    "the order of persisting is turned": ("out_of_order reordered_effect", sql(SWAP_APPLIED)),
    "a message is overtaken by the whole conversation": (
        "out_of_order reordered_effect",
        sql("UPDATE outbox_state SET applied = nextval('outbox_applied') WHERE outbox_id = %(id)s"),
    ),
    "consumed becomes dead": (
        "flipped unclaimed_effect",
        sql("UPDATE outbox_state SET status = 'dead' WHERE outbox_id = %(id)s"),
    ),
    "consumed becomes discarded, cleanly": (
        "unclaimed_effect",
        sql(
            "UPDATE outbox_state SET status = 'discarded', applied = NULL WHERE outbox_id = %(id)s"
        ),
    ),
    "dead becomes consumed": ("flipped no_effect", status("dead", "status = 'consumed'")),
    "dead becomes consumed, cleanly": (
        "no_effect",
        status("dead", "status = 'consumed', applied = nextval('outbox_applied')"),
    ),
    "discarded becomes consumed, cleanly": (
        "no_effect",
        status("discarded", "status = 'consumed', applied = nextval('outbox_applied')"),
    ),
    "consumed stays in line": (
        "blocking",
        sql(
            "UPDATE outbox_state SET topic = 'audited.chat-history', key = 'c3'"
            " WHERE outbox_id = %(id)s"
        ),
    ),
    "an open one leaves its line": ("forgotten", status("retrying", "topic = NULL, key = NULL")),
    "a retry has no time": ("forgotten", status("retrying", "next_retry_at = NULL")),
    "an open one stands in another line": ("misplaced", status("parked", "key = 'c9'")),
    "an open one is not in outbox_open": (
        "wrong_open",
        both(
            status("parked"),
            sql(
                "DELETE FROM outbox_open WHERE outbox_id = ("
                "SELECT min(outbox_id) FROM outbox_open WHERE status = 'parked')"
            ),
        ),
    ),
    "outbox_open has another place in line": (
        "wrong_open",
        both(
            status("parked"),
            sql(
                "UPDATE outbox_open SET arrived = 0 WHERE outbox_id ="
                " (SELECT min(outbox_id) FROM outbox_open WHERE status = 'parked')"
            ),
        ),
    ),
    "a settled one is left in outbox_open": (
        "wrong_open",
        sql(
            "INSERT INTO outbox_open (outbox_id, topic, key, arrived, since, attempts, status)"
            " VALUES (%(id)s, 'audited.chat-history', 'c3', 1, now(), 0, 'parked')"
        ),
    ),
    "a retry is long overdue": (
        "stuck no_sign_of_life",
        status("retrying", "next_retry_at = now() - interval '3 hours'"),
    ),
    "the head of a line vanished": (
        "stuck no_sign_of_life",
        both(
            status("parked", "updated_at = now() - interval '3 hours'"),
            status("retrying", "status = 'dead', topic = NULL, key = NULL, next_retry_at = NULL"),
        ),
    ),
    "two messages have one place": (
        "same_place",
        sql(
            'UPDATE outbox_state SET "offset" = (SELECT "offset" FROM outbox_state WHERE outbox_id'
            " = %(id)s) WHERE outbox_id = %(next)s"
        ),
    ),
    "a conversation is in two partitions": (
        "moved same_place",
        sql("UPDATE outbox_state SET partition = (partition + 1) %% 8 WHERE outbox_id = %(id)s"),
    ),
    "a place is behind the end": (
        "off_the_end out_of_order",
        sql('UPDATE outbox_state SET "offset" = 10^9 WHERE outbox_id = %(id)s', at=-2),
    ),
    "a counter is too high": (
        "wrong_tally",
        sql(
            "UPDATE agent_chats SET message_count = message_count + 1 WHERE chat_id = 'c3'"
            " AND user_id = 0 AND %(id)s > 0"
        ),
    ),
    "a counter is gone": (
        "wrong_tally",
        sql("DELETE FROM agent_chats WHERE chat_id = 'c3' AND user_id = 0 AND %(id)s > 0"),
    ),
    "a counter counts nothing": (
        "wrong_tally",
        sql("INSERT INTO agent_chats VALUES (%(id)s, 'nobody', 1, now())"),
    ),
    "a table is renamed": (
        "unchecked_table",
        table_gone,
    ),
    "a resend of nothing": ("bad_resend missing", both(sql(RESEND.format("8888888")), sql(HIDE))),
    "a resend of a resend": (
        "bad_resend missing",
        both(
            sql(RESEND.format("(SELECT max(id) FROM outbox WHERE resend_of IS NOT NULL)")),
            sql(HIDE),
        ),
    ),
    "another message's replay": (
        "bad_source altered_effect",
        sql(
            "UPDATE outbox_state SET source_id = (SELECT max(id) FROM outbox"
            " WHERE resend_of IS NOT NULL) WHERE outbox_id = %(id)s"
        ),
    ),
    "a replay is lost": ("lost_replay missing", lose_a_replay),
    "nobody publishes a message": ("unpublished", unpublished),
    "nobody publishes": ("unpublished no_sign_of_life", both(unpublished, silent)),
    "nobody publishes, and it is not late yet": ("no_sign_of_life", both(silent)),
    "nobody reads": ("unread no_sign_of_life", unread),
    "a key is not what its payload says": ("key_mismatch missing", other_key),
}


@pytest.mark.parametrize("kind", list(MUTATIONS))
def test_every_corruption_is_found_and_named(
    copy: World, audit: Callable[..., Report], kind: str
) -> None:
    kinds, spoil = MUTATIONS[kind]
    spoiled = spoil(copy)
    report = audit("--full")
    assert set(report["wrong"]) == set(kinds.split())
    first = kinds.split()[0]
    assert report["wrong"][first]["count"] <= 2
    if first not in (
        "wrong_tally",
        "phantom_effect",
        "bad_resend",
        "no_sign_of_life",
        "unchecked_table",
    ):
        assert spoiled in named(report, first)


def never_sent(copy: World) -> int:
    """A message below the floor that no relay has sent.

    It was hidden from the relay, or drawn an id that was passed.
    """
    [(one,)] = copy.query(
        "INSERT INTO outbox (biz_type, topic, key, payload) SELECT biz_type, topic, key, payload"
        " FROM outbox WHERE id = %s RETURNING id",
        chat(copy)[0],
    )
    copy.query(HIDE)
    return int(one)


def topic_gone(copy: World) -> int:
    """A message that was published two hours ago, and whose topic is no more."""
    one = unread(copy)
    copy.query("UPDATE outbox SET topic = 'audited.gone' WHERE id = %s", one)
    return one


# Silent losses: what is done, the kinds that name it where the agent says how its effect is
# recognised, and where it does not.
LOSSES: dict[str, tuple[str, str, Spoil]] = {
    "a run was acked whose transaction was rolled back": (
        "skipped wrong_tally",
        "skipped",
        both(sql("DELETE FROM outbox_state WHERE outbox_id = %(id)s"), forget_effect),
    ),
    "the state was rolled back, and the effect was not": (
        "unclaimed_effect",
        "skipped",
        sql("DELETE FROM outbox_state WHERE outbox_id = %(id)s"),
    ),
    "a message was passed by the floor and never sent": ("missing", "missing", both(never_sent)),
    "a topic is gone": ("unread no_sign_of_life", "unread no_sign_of_life", topic_gone),
    "nobody reads": ("unread no_sign_of_life", "unread no_sign_of_life", unread),
    "nobody publishes": (
        "unpublished no_sign_of_life",
        "unpublished no_sign_of_life",
        both(unpublished, silent),
    ),
    "a key is not what its payload says": (
        "key_mismatch missing",
        "key_mismatch missing",
        other_key,
    ),
    "a replay is lost": ("lost_replay missing", "lost_replay missing", lose_a_replay),
}


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("kind", list(LOSSES))
def test_every_silent_loss_is_found_with_and_without_a_declared_effect(
    copy: World,
    audit: Callable[..., Report],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    declared: bool,
) -> None:
    with_effect, without, spoil = LOSSES[kind]
    if not declared:
        monkeypatch.setattr("streams.cli.audit.configured", undeclared)
    spoiled = spoil(copy)
    report = audit("--full")
    kinds = (with_effect if declared else without).split()
    assert set(report["wrong"]) - {"missing"} == set(kinds) - {"missing"}
    assert set(kinds) <= set(report["wrong"])
    assert spoiled in named(report, kinds[0])


def test_records_that_kafka_deleted_before_anybody_read_them_are_missing(
    copy: World, audit: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of the slow partition begins where it ends, past the committed offset."""
    slow = {row[0] for row in copy.query("SELECT id FROM outbox WHERE key = %s", SLOW)}
    assert audit("--full")["ok"]
    bounds = Topics._bounds
    monkeypatch.setattr(Topics, "_bounds", lambda self, place: (bounds(self, place)[1],) * 2)
    monkeypatch.setattr(Topics, "locate", lambda *_: {})
    monkeypatch.setattr("streams.cli.audit.configured", undeclared)
    report = audit("--full")
    assert set(report["wrong"]) == {"missing"}
    assert slow <= named(report, "missing")


def undeclared(settings: Settings) -> Registry:
    """The registry, of agents that do not say how their effects are recognised."""
    registry = configured(settings)
    return replace(
        registry,
        agents={name: replace(agent, effect=None) for name, agent in registry.agents.items()},
    )
