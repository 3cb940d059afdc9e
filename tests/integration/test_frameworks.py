"""Beside what real services have: Django, Flask, Alembic, a schema of the outbox's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table

from streams.alembic import include_object
from streams.database import sync_engine
from streams.dev.ports import free_port
from streams.dev.process import Process
from tests.conftest import World
from tests.fixtures.forks import Forks

Eventually = Callable[..., Any]
ROOT = Path(__file__).parents[2]
DJANGO = """
import os, sys, unittest
from urllib.parse import urlsplit
import django
from django.conf import settings
from django.db import connection, connections, transaction
from django.test import TestCase
from streams import OutboxDisabled, PayloadInvalid, outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.django import enqueue
from streams.errors import UsageError

url = urlsplit(os.environ["DATABASE_URL"])
postgresql = {
    "ENGINE": "django.db.backends.postgresql", "HOST": url.hostname, "PORT": url.port,
    "USER": url.username, "NAME": url.path[1:],
}
sqlite = {"ENGINE": "django.db.backends.sqlite3"}
settings.configure(DATABASES={"default": postgresql, "other": sqlite}, DEBUG=True)
django.setup()
outbox.start()


def chat(key, text="100 % für \\U0001f40d"):
    return ChatHistoryPersist(user_id=7, conversation_id=key, role="user", message=text)


def refused(kind, *arguments, **options):
    try:
        with transaction.atomic():
            enqueue(*arguments, **options)
    except kind as error:
        return str(error)
    raise AssertionError(kind)


with transaction.atomic():
    first = enqueue(chat("one"), ordered=True)
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    two = enqueue([chat("a"), chat("b")], traceparent=traceparent)
    try:
        with transaction.atomic():
            enqueue(chat("rolled back"))
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert enqueue([]) == []
try:
    enqueue(chat("alone"))
except UsageError as error:
    assert "outside of transaction.atomic" in str(error)
else:
    raise AssertionError
assert "is sqlite: expected postgresql" in refused(UsageError, chat("x"), using="other")
assert "'message' is of type int" in refused(PayloadInvalid, chat("x", 7))
with connection.cursor() as cursor:
    cursor.execute(
        "SELECT id, key, payload->>'message', traceparent IS NOT NULL FROM outbox ORDER BY id"
    )
    text = chat("").message
    assert cursor.fetchall() == [
        (first, "one", text, False), (two[0], "a", text, True), (two[1], "b", text, True)
    ]


class Tests(TestCase):
    def test_a_block_of_its_own(self):
        with transaction.atomic():
            enqueue(chat("in a test"))

    def test_none_but_the_test_cases(self):
        with self.assertRaisesMessage(UsageError, "outside of transaction.atomic"):
            enqueue(chat("in a test"))


tests = unittest.defaultTestLoader.loadTestsFromTestCase(Tests)
assert unittest.TextTestRunner().run(tests).wasSuccessful()
os.environ["STREAMS_OUTBOX__ENABLED"] = "false"
outbox.start()
refused(OutboxDisabled, chat("x"))
assert "confluent_kafka" not in sys.modules and "faust" not in sys.modules
"""


def test_djangos_connection_enqueues_in_its_transaction(database: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")}
    ended = subprocess.run(
        [sys.executable, "-c", DJANGO],
        cwd=tmp_path,
        env={**environ, "DATABASE_URL": database, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


# What `django-admin startproject` writes, in one file.
MANAGE = """
import os, sys
from urllib.parse import urlsplit
from django.conf import settings
from django.core.management import execute_from_command_line
url = urlsplit(os.environ["DATABASE_URL"])
database = {
    "ENGINE": "django.db.backends.postgresql", "HOST": url.hostname, "PORT": url.port,
    "USER": url.username, "NAME": url.path[1:],
}
settings.configure(
    DATABASES={"default": database}, ROOT_URLCONF="urls", INSTALLED_APPS=["chat.apps.ChatConfig"],
    ALLOWED_HOSTS=["127.0.0.1"],
)
execute_from_command_line(sys.argv)
"""
SERVICES = {
    "FastAPI": ("uvicorn", "shop:app", "--port", "{port}"),
    "Flask": ("flask", "--app", "shop", "run", "--port", "{port}"),
    "Django": ("manage.py", "runserver", "--noreload", "127.0.0.1:{port}"),
}


@pytest.mark.parametrize("framework", SERVICES)
async def test_the_services_of_the_docs_enqueue(
    framework: str, database: str, tmp_path: Path, eventually: Eventually
) -> None:
    """Each as the page writes it, started and asked as it says."""
    page = (ROOT / "docs/frameworks.md").read_text(encoding="utf-8")
    section = page.partition(f"## {framework}\n")[2].partition("\n## ")[0]
    for name, code in re.findall(r"^```python\n# (\S+)\n(.*?)^```$", section, re.M | re.S):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    (tmp_path / "manage.py").write_text(MANAGE)
    [address] = re.findall(r"^curl (?:-X POST )?'?(http.*?)'?$", section, re.M)
    method = "POST" if "-X POST" in section else "GET"
    port = free_port()
    program, *arguments = [word.format(port=port) for word in SERVICES[framework]]
    start = (program,) if program.endswith(".py") else ("-m", program)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")}
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    service = Process(
        (sys.executable, *start, *arguments),
        tmp_path / "log",
        environ={**environ, "DATABASE_URL": database, "PYTHONPATH": path},
        cwd=tmp_path,
    )

    def asked() -> Any:
        assert service.running, service.last_words(20, between="\n")
        request = Request(re.sub(r":\d+/", f":{port}/", address), method=method)
        try:
            # One that is slow is not asked twice: it would have enqueued twice.
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except URLError as error:
            assert not isinstance(error, HTTPError), service.last_words(30, between="\n")
            return None

    service.launch()
    try:
        said = await eventually(asked, 60)
    finally:
        service.kill()
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT id, key, payload->>'message' FROM outbox").fetchall()
    assert rows == [(said["outbox_id"], "c1", "hi")]


@pytest.mark.filterwarnings("ignore:Did not recognize type 'pg_lsn'")
def test_alembics_autogenerate_leaves_our_tables_alone(database: str) -> None:
    """Nineteen drop_table, the outbox first."""
    mine = MetaData()
    Table("orders", mine, Column("id", Integer, primary_key=True))
    Table(
        "agent_chats", mine, Column("id", Integer, primary_key=True)
    )  # a name that the business has too
    engine = sync_engine(database)
    with engine.connect() as connection:

        def differences(**options: Any) -> set[tuple[str, str]]:
            context = MigrationContext.configure(connection, opts=options)
            differing = [
                each for each in compare_metadata(context, mine) if isinstance(each, tuple)
            ]
            # Of a column: (kind, schema, table, column).
            return {
                (each[0], each[1].name if hasattr(each[1], "name") else each[2])
                for each in differing
            }

        assert ("remove_table", "outbox") in differences()
        differing = differences(include_object=include_object)
        connection.rollback()
    engine.dispose()
    assert {each for each in differing if each[0].endswith("_table")} == {("add_table", "orders")}
    assert {name for kind, name in differing if kind.endswith("_column")} == {"agent_chats"}


async def test_everything_works_in_a_schema_of_its_own(
    world: World, eventually: Eventually
) -> None:
    """As docs/frameworks.md recommends it.

    Ours is first in our sessions, last in those of the business.
    """
    plain = world.url
    with psycopg.connect(plain, autocommit=True) as connection:
        # What the template has made in `public` is nobody's: somebody else's tables of the same
        # names.
        connection.execute(
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE SCHEMA streams"
        )
        connection.execute("CREATE TABLE public.chat_histories (id int)")
        [(name,)] = connection.execute("SELECT current_database()")
        connection.execute(f"ALTER DATABASE {name} SET search_path = public, streams".encode())
    world.environ["DATABASE_URL"] = f"{plain}?options=-csearch_path%3Dstreams,public"
    world.up()
    with psycopg.connect(plain, autocommit=True) as connection:
        message = '{"user_id": 1, "conversation_id": "c1", "role": "user", "message": "hi"}'
        [(first,)] = connection.execute(
            "SELECT outbox_enqueue('chat_history_persist', 'c1', %s)", [message]
        )
        [(second,)] = connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload)"
            " VALUES ('chat_history_persist', %s, 'c1', %s) RETURNING id",
            [world.topic, message],
        )
        await world.until_persisted([first, second])
        assert connection.execute("SELECT count(*) FROM streams.chat_histories").fetchall() == [
            (2,)
        ]
        assert connection.execute("SELECT count(*) FROM public.chat_histories").fetchall() == [(0,)]
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p', 'v')"
        ).fetchall()
        assert tables == [("chat_histories",)]
    for command in (
        ["trace", str(first)],
        ["dead", "list"],
        ["audit"],
        ["biz-types", "list"],
        ["migrate"],
    ):
        process = world.start("streams", *command)
        assert await process.finish(60) == 0, process.log.read_text()


@pytest.mark.long
async def test_tenants_with_a_schema_each_share_a_database(
    world: World, forks: Forks, name: str, eventually: Eventually
) -> None:
    """As docs/tenants.md says it, with a prefix that keeps other tests apart."""
    page = (ROOT / "docs/tenants.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+)\.([a-z_]+)`.*?\| `(.+?)` \|$", page, re.M)
    assert len(rows) == 5
    message = '{"user_id": 1, "conversation_id": "c1", "role": "user", "message": "hi"}'
    plain = world.url
    deployed: dict[str, World] = {}
    with ExitStack() as stack, psycopg.connect(plain, autocommit=True) as connection:
        for tenant in ("acme", "best"):
            connection.execute(f"CREATE SCHEMA {tenant}".encode())
            environ = {"BROKER_URL": world.environ["BROKER_URL"]}
            for section, key, value in rows:
                value = value.replace("acme", tenant if key == "url" else f"{name}_{tenant}")
                value = value.replace("postgresql://app@db/app", plain)
                environ[f"STREAMS_{section}__{key}".upper()] = value
            environ["DATABASE_URL"] = environ["STREAMS_DATABASE__URL"]
            folder = world.directory / tenant
            folder.mkdir()
            deployed[tenant] = World(environ, folder, forks=forks)
            stack.enter_context(deployed[tenant]).up()
        for tenant, each in deployed.items():
            [(outbox_id,)] = connection.execute(
                f"SELECT {tenant}.outbox_enqueue('chat_history_persist', 'c1', %s)".encode(),
                [message],
            )
            await each.until_persisted(outbox_id)
            with connection.transaction():
                connection.execute(f"SET LOCAL search_path = {tenant}".encode())
                [count] = connection.execute("SELECT count(*) FROM chat_histories")
                assert count == (1,)
        for tenant, each in deployed.items():
            assert each.query("SELECT count(*) FROM outbox") == [(1,)]
            assert await each.start("streams", "audit").finish(60) == 0, tenant
