"""outbox_enqueue(): one statement for a service in any language.

Its refusals say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Json, Jsonb
from sqlalchemy import cast, func, select
from sqlalchemy.dialects.postgresql import JSONB

from streams.database import sync_engine

GOOD = '{"user_id":1,"conversation_id":"c1","role":"user","message":"hi"}'
TYPE = "chat_history_persist"
REGISTERS = "; `streams migrate` registers new ones"
KEYLESS = "UPDATE outbox_biz_types SET key_field = NULL"
Enqueue = Callable[..., int]


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def enqueue(connection: psycopg.Connection[Any]) -> Enqueue:
    def enqueue(
        biz_type: str | None = TYPE, key: str | None = "c1", payload: str | None = GOOD
    ) -> int:
        cursor = connection.execute(
            "SELECT outbox_enqueue(%s, %s, %s::json)", [biz_type, key, payload]
        )
        [(outbox_id,)] = cursor.fetchall()
        assert isinstance(outbox_id, int)
        return outbox_id

    return enqueue


def rows(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT id, biz_type, topic, key, payload::text FROM outbox ORDER BY id"
    ).fetchall()


def test_it_returns_the_outbox_id_and_keeps_the_payload_verbatim(
    enqueue: Enqueue, connection: psycopg.Connection[Any]
) -> None:
    odd = '{"conversation_id" : "\\u00fc",\n "a":1.50, "a": "\\u00fc"}'
    first, second = enqueue(), enqueue(key="ü", payload=odd)
    assert first < second
    assert rows(connection) == [
        (first, TYPE, "chat-history", "c1", GOOD),
        (second, TYPE, "chat-history", "ü", odd),
    ]


def test_rolled_back_it_leaves_nothing(database: str, connection: psycopg.Connection[Any]) -> None:
    with psycopg.connect(database) as other:
        other.execute("SELECT outbox_enqueue(%s, %s, %s::json)", [TYPE, "c1", GOOD])
        other.rollback()
    assert rows(connection) == []


def limited(size: int) -> str:
    return '{"a":"' + "x" * (size - 8) + '"}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"biz_type": "nope"},
            f"unknown biz_type 'nope': expected one of {TYPE}{REGISTERS}",
        ),
        (
            {"biz_type": None},
            f"unknown biz_type NULL: expected one of {TYPE}{REGISTERS}",
        ),
        ({"key": None}, f"{TYPE}: key has 0 bytes, expected 1 to 1024"),
        ({"key": ""}, f"{TYPE}: key has 0 bytes, expected 1 to 1024"),
        ({"key": "ü" * 513}, f"{TYPE}: key has 1026 bytes, expected 1 to 1024"),
        ({"payload": None}, f"{TYPE}: payload is null, expected a JSON object"),
        ({"payload": "null"}, f"{TYPE}: payload is null, expected a JSON object"),
        ({"payload": "[1]"}, f"{TYPE}: payload is array, expected a JSON object"),
        ({"payload": '"hi"'}, f"{TYPE}: payload is string, expected a JSON object"),
        (
            {"payload": limited(900_001)},
            f"{TYPE}: payload has 900001 bytes, expected at most 900000",
        ),
        (
            {"payload": '{"a": "x\\u0000y"}'},
            f"{TYPE}: payload holds a NUL character (\\u0000), which text cannot hold",
        ),
        (
            {"payload": '{"\\u0000": 1}'},
            f"{TYPE}: payload holds a NUL character (\\u0000), which text cannot hold",
        ),
        (
            {"payload": '{"a": [{"b": "\\ud83d"}]}'},
            f"{TYPE}: payload holds a lone surrogate, which is no character",
        ),
        (
            {"payload": '{"a": "\\ude00"}'},
            f"{TYPE}: payload holds a lone surrogate, which is no character",
        ),
        (
            {"payload": '{"a": "\\ud83d\\ud83d"}'},
            f"{TYPE}: payload holds a lone surrogate, which is no character",
        ),
        ({"payload": '{"a": 1e999999}'}, f"{TYPE}: payload holds a number out of range"),
        (
            {"key": "OTHER"},
            (
                f"{TYPE}: key (5 bytes) is not what field 'conversation_id' of the payload says (2"
                " bytes): expected the same"
            ),
        ),
        (
            {"payload": '{"a": 1}'},
            (
                f"{TYPE}: key (2 bytes) is not what field 'conversation_id' of the payload says"
                " (absent): expected the same"
            ),
        ),
        (
            {"payload": '{"conversation_id": null}'},
            (
                f"{TYPE}: key (2 bytes) is not what field 'conversation_id' of the payload says"
                " (null): expected the same"
            ),
        ),
        (
            {"payload": '{"conversation_id": 7}'},
            (
                f"{TYPE}: key (2 bytes) is not what field 'conversation_id' of the payload says"
                " (number): expected the same"
            ),
        ),
    ],
)
def test_a_refusal_is_22023_and_names_it(
    arguments: dict[str, Any], message: str, enqueue: Enqueue, connection: psycopg.Connection[Any]
) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        enqueue(**arguments)
    assert caught.value.sqlstate == "22023"
    assert caught.value.diag.message_primary == message
    assert rows(connection) == []


@pytest.mark.parametrize(
    "payload",
    [
        limited(900_000),
        '{"a": "\\\\u0000 and \\\\ud83d were typed"}',
        '{"a": "\\ud83d\\ude00"}',
        "{}",
        '{"a": 1e300, "b": -0.0, "c": 123456789012345678901234567890}',
    ],
)
def test_a_setting_that_only_looks_wrong_is_accepted(
    payload: str, enqueue: Enqueue, connection: psycopg.Connection[Any]
) -> None:
    connection.execute(KEYLESS)
    enqueue(key="ü" * 512, payload=payload)
    assert rows(connection)[0][4] == payload


@pytest.mark.parametrize(
    "payload", ["", "{", "{'a': 1}", '{"a": NaN}', '{"a": "\x01"}', '{"a": 1} x']
)
def test_broken_json_never_reaches_the_function(payload: str, enqueue: Enqueue) -> None:
    with pytest.raises(errors.InvalidTextRepresentation):
        enqueue(payload=payload)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def test_payloads_nested_too_deep_are_refused_at_every_depth(
    enqueue: Enqueue, connection: psycopg.Connection[Any]
) -> None:
    """The server reads json with a stack of its own.

    What is deeper than that is 54001 before the function runs.
    """
    connection.execute(KEYLESS)
    enqueue(payload=nested(1000))
    with pytest.raises(errors.StatementTooComplex):
        enqueue(payload=nested(100_000))
    # Between them is a depth that json takes and jsonb, inside the function, does not.
    good, bad, seen = 1000, 100_000, set()
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            enqueue(payload=nested(middle))
            good = middle
        except psycopg.Error as error:
            seen.add((error.sqlstate, error.diag.message_primary))
            bad = middle
    assert (("22023", f"{TYPE}: payload is nested too deep")) in seen
    assert {sqlstate for sqlstate, _ in seen} <= {"22023", "54001"}
    enqueue()


@pytest.mark.parametrize(
    ("key", "payload"),
    [
        ("c1", '{"conversation_id": "other", "conversation_id": "c1"}'),
        ("a\nb", '{"conversation_id": "a\\u000ab"}'),
        ("7", '{"conversation_id": 7}'),
        ("100", '{"conversation_id": 1e2}'),
        ("true", '{"conversation_id": true}'),
        ("[1,2]", '{"conversation_id": [1, 2]}'),
    ],
)
def test_a_key_is_what_its_field_says(enqueue: Enqueue, key: str, payload: str) -> None:
    enqueue(key=key, payload=payload)


def test_a_biz_type_that_an_older_version_registered_has_no_key_field(
    enqueue: Enqueue, connection: psycopg.Connection[Any]
) -> None:
    connection.execute(KEYLESS)
    enqueue(key="OTHER")


def test_a_payload_may_be_bound_as_whatever_a_driver_takes_it_for(
    database: str, connection: psycopg.Connection[Any]
) -> None:
    """Five of five libraries met 42883.

    SQLAlchemy's func, jsonb, a prepared statement's parameters of type text.
    """
    plain = orjson.loads(GOOD)
    for query, payload in (
        ("SELECT outbox_enqueue(%s, %s, %s)", GOOD),
        ("SELECT outbox_enqueue(%s, %s, %s)", Json(plain)),
        ("SELECT outbox_enqueue(%s, %s, %s)", Jsonb(plain)),
        ("SELECT outbox_enqueue(%s, %s, %s::varchar)", GOOD),
        ("SELECT outbox_enqueue(biz_type => %s, key => %s, payload => %s)", GOOD),
    ):
        connection.execute(query.encode(), [TYPE, "c1", payload])
    connection.execute(f"SELECT outbox_enqueue('{TYPE}', 'c1', '{GOOD}')".encode())
    connection.execute("PREPARE q (text, text, text) AS SELECT outbox_enqueue($1, $2, $3)")
    connection.execute(f"EXECUTE q ('{TYPE}', 'c1', '{GOOD}')".encode())
    engine = sync_engine(database)
    with engine.begin() as begun:
        begun.execute(select(func.outbox_enqueue(TYPE, "c1", GOOD)))
        begun.execute(select(func.outbox_enqueue(TYPE, "c1", cast(plain, JSONB))))
    engine.dispose()
    written = rows(connection)
    assert len(written) == 9
    assert all(orjson.loads(row[4]) == plain for row in written)
    with pytest.raises(errors.InvalidTextRepresentation):
        connection.execute("SELECT outbox_enqueue(%s, %s, %s)", [TYPE, "c1", "{broken"])
    connection.execute("SET search_path = pg_catalog")
    connection.execute("SELECT public.outbox_enqueue(%s, %s, %s)", [TYPE, "c1", Jsonb(plain)])
