"""What keeps a promise from being kept stops a start with one line.

Our functions work in any session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from streams.errors import StreamsError, UsageError
from streams.registry import configured
from streams.relay.leader.lock import Leadership
from streams.relay.postgres.checks import check_database
from streams.relay.source.poll import PollSource
from streams.worker import preflight
from tests.conftest import World

PAYLOAD = '{"user_id":1,"conversation_id":"c1","role":"user","message":"hi"}'
ENQUEUE = "SELECT {}.outbox_enqueue('chat_history_persist', 'c1', %s)"


def starts(world: World) -> list[Callable[[], Any]]:
    settings = world.settings
    registry = configured(settings)
    return [
        lambda: preflight.check(settings, registry),
        lambda: check_database(settings),
        world.migrate,
    ]


@pytest.fixture
def role(world: World, name: str) -> Iterator[str]:
    """A role that may do everything with our tables, and bypasses nothing."""
    with psycopg.connect(world.url, autocommit=True) as connection:
        identifier = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(identifier))
        for what in ("TABLES", "SEQUENCES"):
            connection.execute(
                sql.SQL(f"GRANT ALL ON ALL {what} IN SCHEMA public TO {{}}").format(identifier)
            )
    owner = world.url
    yield name
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    "table", ["outbox", "outbox_state", "relay_position", "chat_histories", "outbox_biz_types"]
)
def test_row_level_security_stops_the_start(world: World, role: str, table: str) -> None:
    world.migrate()
    with psycopg.connect(world.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(sql.Identifier(table))
        )
    check_database(world.settings)  # the owner sees all
    world.environ["DATABASE_URL"] = world.url.replace("postgres@", f"{role}@")
    # A relay has nothing to do with the tables of an agent.
    for start in starts(world)[: 1 if table == "chat_histories" else 2]:
        with pytest.raises(
            UsageError,
            match=rf"row level security hides rows of {table} from this role: run ALTER ROLE",
        ):
            start()


async def test_row_level_security_that_comes_later_is_an_error_and_no_answer(
    world: World, role: str
) -> None:
    with psycopg.connect(world.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
        connection.execute(ENQUEUE.format("public"), [PAYLOAD])
    source = PollSource(world.url.replace("postgres@", f"{role}@"), name=role, interval=0.05)
    async with source:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"):
            async for _ in source:
                pass
    assert source.value == 0


@pytest.mark.parametrize(
    ("sequence", "change"),
    [
        ("outbox_id_seq", "CACHE 20"),
        ("outbox_arrived", "CACHE 20"),
        ("outbox_applied", "INCREMENT 2"),
        ("outbox_died", "CYCLE"),
    ],
)
async def test_numbers_that_are_not_drawn_one_by_one_stop_start_and_leader(
    world: World, sequence: str, change: str
) -> None:
    """Ids, and those that say in which order messages wait, were persisted, and died."""
    world.migrate()
    async with Leadership(world.settings, "poll") as leadership:
        await leadership.look()
        world.query(f"ALTER SEQUENCE {sequence} {change}")
        mend = f"run ALTER SEQUENCE {sequence} CACHE 1 INCREMENT 1 NO CYCLE, then end every session"
        with pytest.raises(UsageError, match=mend):
            await leadership.look()
    for start in starts(world):
        with pytest.raises(UsageError, match=f"sequence {sequence} has CACHE"):
            await asyncio.to_thread(start)
    world.query(f"ALTER SEQUENCE {sequence} CACHE 1 INCREMENT 1 NO CYCLE")
    for start in starts(world):
        await asyncio.to_thread(start)


async def test_a_floor_waits_while_sessions_may_keep_ids(world: World, name: str) -> None:
    """A session that has kept smaller ids holds no lock between its transactions.

    Nothing tells of those ids.
    """
    world.query("ALTER SEQUENCE outbox_id_seq CACHE 20")
    with (
        psycopg.connect(world.url, autocommit=True) as keeper,
        psycopg.connect(world.url, autocommit=True) as other,
    ):
        for connection in (keeper, other):
            connection.execute(ENQUEUE.format("public"), [PAYLOAD])
        async with PollSource(world.url, name=name, interval=0.05) as source:
            rows = aiter(source)
            sent = [row async for row in _some(rows, source, 2)]
            assert (len(sent), source.value) == (2, 0)


async def _some(batches: Any, source: PollSource, count: int) -> Any:
    while count > 0:
        batch = await anext(batches)
        source.confirm(batch.position)
        for row in batch.rows:
            count -= 1
            yield row


@pytest.mark.parametrize("path", ["", "pg_catalog", "elsewhere, pg_temp"])
def test_enqueue_works_with_any_search_path_and_date_style(database: str, path: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE SCHEMA elsewhere CREATE TABLE outbox_biz_types (biz_type text, topic text,"
            " max_bytes int)"
        )
        connection.execute(
            "SELECT set_config('search_path', %s, false), set_config('datestyle', 'SQL, DMY',"
            " false)",
            [path],
        )
        connection.execute(ENQUEUE.format("public"), [PAYLOAD])
        assert connection.execute("SELECT count(*) FROM public.outbox").fetchone() == (1,)


def test_every_function_of_ours_pins_what_it_means(database: str) -> None:
    with psycopg.connect(database) as connection:
        functions = connection.execute(
            "SELECT proname, prosqlbody IS NOT NULL OR proconfig::text LIKE '%search_path%'"
            " FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert {name for name, pinned in functions if not pinned} == set()
    assert len(functions) >= 6


def test_a_database_of_bytes_is_refused(world: World) -> None:
    whole = world.url
    name = f"{world.url.rpartition('/')[2]}_ascii"
    create = "CREATE DATABASE {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    with psycopg.connect(world.url, autocommit=True) as connection:
        connection.execute(sql.SQL(create).format(sql.Identifier(name)))
    world.environ["DATABASE_URL"] = f"{world.url.rpartition('/')[0]}/{name}"
    for start in starts(world):
        with pytest.raises(
            StreamsError, match=r"SQL_ASCII.*CREATE DATABASE \.\.\. ENCODING 'UTF8'"
        ) as refused:
            start()
        assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)
    with psycopg.connect(whole, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
