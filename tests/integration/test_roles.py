"""The roles of docs/security.md.

Each does its job with exactly the documented rights, and nobody else's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import NullPool
from sqlalchemy.exc import ProgrammingError

from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.cli import cli
from streams.database import async_engine, connect, partitions, revisions, sync_engine
from streams.settings import load
from streams.web.messages import Request
from streams.web.pages import PAGES
from streams.web.site import Site
from tests.conftest import Eventually, World
from tests.fixtures.publish import CHAT, payload

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
MAKE, GRANT, SWITCHED_OFF = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
ROLES = re.findall(r"^CREATE ROLE (\w+)", MAKE, re.MULTILINE)
OWNER, RELAY, WORKER, BUSINESS, OPERATOR, AUDITOR = ROLES


@pytest.fixture
def superuser(world: World) -> str:
    """The database as whoever made it."""
    return world.url


@pytest.fixture
def granted(world: World, superuser: str) -> Iterator[World]:
    """A world that was migrated by its owner, with the documented roles."""
    world.environ["STREAMS_RELAY__MODE"] = "auto"
    reset(superuser)
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(MAKE.encode())
    world.environ["DATABASE_URL"] = as_role(world, OWNER)
    world.migrate()
    with psycopg.connect(as_role(world, OWNER), autocommit=True) as connection:
        connection.execute(GRANT.encode())
    yield world
    for process in world.processes:
        process.kill()
    with psycopg.connect(superuser, autocommit=True) as connection:
        for role in reversed(ROLES):
            connection.execute(f"DROP OWNED BY {role} CASCADE".encode())
            connection.execute(f"DROP ROLE {role}".encode())


def reset(url: str) -> None:
    """The database as it is before the first migration.

    The fixture's was migrated by a superuser.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO"
            " PUBLIC"
        )
        connection.execute("DROP PUBLICATION IF EXISTS outbox_pub")


def as_role(world: World, role: str) -> str:
    return re.sub(r"//\w+@", f"//{role}@", world.url)


async def test_each_role_does_its_job(
    granted: World, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = granted
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.directory)

    def run(role: str, *arguments: str) -> Result:
        monkeypatch.setenv("DATABASE_URL", as_role(world, role))
        return CliRunner().invoke(cli, arguments, catch_exceptions=False)

    world.relay(DATABASE_URL=as_role(world, RELAY))
    world.worker(DATABASE_URL=as_role(world, WORKER))
    good, bad = payload(0, "c1"), payload(1, "c2", user_id="x")
    with psycopg.connect(as_role(world, BUSINESS)) as business:
        for key, message in (("c1", good), ("c2", bad)):
            business.execute(
                "SELECT outbox_enqueue(%s, %s, %s::json)", [CHAT, key, json.dumps(message)]
            )
    await _enqueue_in_python(world)
    states = "SELECT status, count(*) FROM outbox_state GROUP BY status ORDER BY status"
    await eventually(lambda: world.query(states) == [("consumed", 2), ("dead", 1)], 90)
    await eventually(lambda: world.query("SELECT floor FROM relay_position") == [(3,)])

    assert run(OPERATOR, "status").exit_code == 0
    for command in (
        ("dead", "list"),
        ("dead", "show", "2"),
        ("trace", "2"),
        ("relay", "status"),
        ("biz-types", "list"),
    ):
        assert run(OPERATOR, *command).exit_code == 0, command
    await _look_at_every_page(world)
    assert run(OPERATOR, "conversations", "list").exit_code == 0
    assert run(OPERATOR, "relay", "switch", "--to", "cdc").exit_code == 0
    assert run(OPERATOR, "dead", "replay", "2", "--why", "again").exit_code == 0
    await eventually(
        lambda: (
            world.query("SELECT status, replays FROM outbox_state WHERE outbox_id = 2")
            == [("dead", 1)]
        ),
        60,
    )
    assert run(OPERATOR, "dead", "discard", "2", "--yes").exit_code == 0
    for options in ((), ("--undo",)):
        assert run(OPERATOR, "biz-types", "retire", CHAT, *options).exit_code == 0
    audited = run(AUDITOR, "audit", "--full")
    assert audited.exit_code == 0, audited.output
    assert run(AUDITOR, "audit").exit_code == 0
    assert run(OWNER, "migrate").exit_code == 0


async def _look_at_every_page(world: World) -> None:
    """As an operator; with a worker's own rights pages say what they lack."""
    for role in (OPERATOR, WORKER):
        site = Site(load(environ=world.environ | {"DATABASE_URL": as_role(world, role)}))
        refused = 0
        for page in (
            page for page in PAGES if "{" not in page.path and page.path != "/conversation"
        ):
            answer = await site.answer(
                Request("GET", page.path, headers=[("host", "localhost")], peer="127.0.0.1")
            )
            if role == OPERATOR:
                assert answer.status == 200, (page.path, answer.body)
            refused += b"web.database_url and web.acts_url may name a role that may" in answer.body
        assert (refused > 0) == (role == WORKER)
        await site.close()


# A statement, and who may do it beside the owner.
RIGHTS: list[tuple[str, set[str]]] = [
    ("SELECT payload FROM outbox", {RELAY, WORKER, OPERATOR, AUDITOR}),
    (
        "INSERT INTO outbox (biz_type, topic, key, payload) VALUES ('x', 't', 'c', '{}')",
        {RELAY, BUSINESS, OPERATOR},
    ),
    (
        (
            "INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
            " VALUES ('x', 't', 'c', '{}', 1)"
        ),
        {RELAY, OPERATOR},
    ),
    ("UPDATE outbox SET key = 'x'", set()),
    ("DELETE FROM outbox", set()),
    ("INSERT INTO outbox_state (outbox_id, status) VALUES (1, 'dead')", {RELAY, WORKER}),
    ("UPDATE outbox_state SET status = 'dead'", {RELAY, WORKER, OPERATOR}),
    ("DELETE FROM outbox_state", set()),
    ("UPDATE outbox_foreign SET status = 'dead'", {WORKER, OPERATOR}),
    ("UPDATE outbox_biz_types SET topic = 'mine'", set()),
    ("UPDATE outbox_biz_types SET retired_at = now()", {OPERATOR}),
    ("UPDATE relay_position SET floor = 9", {RELAY}),
    ("UPDATE relay_position SET wish = 'poll'", {RELAY, OPERATOR}),
    ("INSERT INTO outbox_actions (who, act, what) VALUES ('me', 'x', '{}')", {OPERATOR}),
    ("DELETE FROM outbox_actions", set()),
    ("DELETE FROM outbox_audit_left", {AUDITOR}),
    ("INSERT INTO agent_chats VALUES (1, 'c', 1, now())", {WORKER}),
    ("SELECT message_content FROM chat_histories", {WORKER, AUDITOR}),
    ("DELETE FROM chat_histories", set()),
    ("SELECT setval('outbox_id_seq', 1)", set()),
    ("CREATE TABLE mine ()", set()),
    ("ALTER TABLE outbox ADD COLUMN mine int", set()),
]


def test_no_role_does_the_job_of_another(granted: World) -> None:
    wrong = []
    for role in ROLES:
        with psycopg.connect(as_role(granted, role)) as connection:
            for statement, allowed in RIGHTS:
                may = True
                try:
                    with connection.transaction(force_rollback=True):
                        connection.execute(statement.encode())
                except psycopg.errors.InsufficientPrivilege:
                    may = False
                if may != (role == OWNER or role in allowed):
                    wrong.append(f"{role} {'may' if may else 'may not'}: {statement}")
    assert wrong == []


async def test_a_business_role_records_while_the_outbox_is_off(granted: World) -> None:
    environ = granted.environ | {"STREAMS_OUTBOX__ENABLED": "false"}
    outbox.start(load(environ=environ))
    event = ChatHistoryPersist(user_id=1, conversation_id="c1", role="user", message="hi")
    engine = async_engine(as_role(granted, BUSINESS))

    async def record() -> None:
        async with engine.begin() as connection:
            await outbox.record(connection, event)

    try:
        with pytest.raises(ProgrammingError, match="permission denied for table outbox_direct"):
            await record()
        with psycopg.connect(as_role(granted, OWNER), autocommit=True) as owner:
            owner.execute(SWITCHED_OFF.encode())
        await record()
    finally:
        await engine.dispose()
        outbox.close()
    written = "SELECT d.outbox_id FROM outbox_direct AS d JOIN chat_histories USING (outbox_id)"
    assert len(granted.query(written)) == 1


async def test_partitions_that_a_relay_makes_are_the_owners(granted: World) -> None:
    owners = (
        "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'outbox%%'"
        " AND schemaname = %s"
    )
    with psycopg.connect(as_role(granted, "postgres"), autocommit=True) as connection:
        connection.execute(f"GRANT {OWNER} TO {RELAY}".encode())
        before = connection.execute("SELECT count(*) FROM pg_inherits").fetchone()
        async with await connect(as_role(granted, RELAY)) as relay:
            assert await partitions.ensure(relay, ahead=30_000_000, width=5_000_000) > 0
            assert (await (await relay.execute("SELECT current_user")).fetchone()) == (RELAY,)
        assert connection.execute("SELECT count(*) FROM pg_inherits").fetchone() != before
        assert connection.execute(owners, ["public"]).fetchall() == [(OWNER,)]


async def _enqueue_in_python(world: World) -> None:
    outbox.start(world.settings)
    try:
        engine = async_engine(as_role(world, BUSINESS))
        async with engine.begin() as connection:
            event = ChatHistoryPersist(user_id=1, conversation_id="c3", role="user", message="hi")
            await outbox.enqueue(connection, event, ordered=True)
        await engine.dispose()
    finally:
        outbox.close()


def test_what_a_member_of_the_owner_migrates_is_the_owners(
    granted: World, superuser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions that were made later could not be attached, and enqueueing ended."""
    for name, value in granted.environ.items():
        monkeypatch.setenv(name, value)
    reset(superuser)
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}".encode())
        connection.execute(
            f"CREATE ROLE deploy LOGIN; GRANT {OWNER} TO deploy;"
            " GRANT USAGE, CREATE ON SCHEMA public TO deploy".encode()
        )
    try:
        with sync_engine(as_role(granted, OWNER), poolclass=NullPool).connect() as database:
            revisions.apply(database, "0012")
            database.commit()
        monkeypatch.setenv("DATABASE_URL", as_role(granted, "deploy"))
        monkeypatch.setenv("STREAMS_RELAY__MODE", "poll")
        result = CliRunner().invoke(cli, ["migrate"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        owners = """
            SELECT relname, pg_get_userbyid(relowner) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND pg_get_userbyid(relowner) <> %s
            UNION ALL
            SELECT proname, pg_get_userbyid(proowner) FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND pg_get_userbyid(proowner) <> %s"""
        with psycopg.connect(superuser) as connection:
            assert connection.execute(owners, (OWNER, OWNER)).fetchall() == []
        with sync_engine(as_role(granted, OWNER), poolclass=NullPool).connect() as database:
            assert partitions.ensure_sync(database, ahead=5_000_000, width=1_000_000) > 1
            database.commit()
    finally:
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("DROP OWNED BY deploy CASCADE; DROP ROLE deploy")
