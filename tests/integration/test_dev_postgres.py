"""PostgreSQL from the wheel starts for root and for ordinary users.

It keeps data and port, and fails in one line.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import psutil
import psycopg
import pytest

from streams.dev.guard import NOBODY
from streams.dev.ports import HOST
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.dev.toolbox import toolbox
from streams.errors import ServiceUnreachable, UsageError

ROOT = os.geteuid() == 0

ORDINARY_USER = """
import asyncio, os, sys
from pathlib import Path
import psycopg
from streams.dev.postgres import PostgresServer

async def main():
    assert os.geteuid() != 0
    async with PostgresServer(Path(sys.argv[1])) as server:
        with psycopg.connect(server.url) as connection:
            print(*connection.execute("SELECT current_database(), pg_size_bytes('1kB')").fetchone())

asyncio.run(main())
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def value(server: PostgresServer, statement: LiteralString) -> object:
    """The first value that a statement gives, if it gives any."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


async def test_it_listens_on_loopback_only_and_is_ready_for_logical_decoding(
    tmp_path: Path,
) -> None:
    async with PostgresServer(tmp_path) as server:
        assert value(server, "SHOW listen_addresses") == HOST
        assert value(server, "SHOW unix_socket_directories") == ""
        assert value(server, "SHOW wal_level") == "logical"
        assert value(server, "SHOW fsync") == "on"
        assert value(server, "SELECT current_database()") == "streams"
        assert value(server, "SHOW server_encoding") == "UTF8"


async def test_nobody_gets_in_without_the_password_that_only_we_can_read(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path) as server:
        for file in (tmp_path / "password", server.passfile):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(server.password) == 64
        bare = f"postgresql://postgres@{HOST}:{server.port}/streams"
        for url in (
            bare,
            bare.replace("postgres@", "postgres:wrong@"),
            bare.replace("postgres@", "somebody@"),
        ):
            with pytest.raises(
                psycopg.OperationalError, match=r"no password supplied|authentication failed"
            ):
                psycopg.connect(url)
        assert server.password not in (tmp_path / "postgres.log").read_text()
        with psycopg.connect(bare, passfile=str(server.passfile)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        url = server.url
    async with PostgresServer(tmp_path) as server:
        assert server.url == url
        assert value(server, "SELECT 1") == 1


async def test_a_folder_of_an_older_version_that_let_everybody_in_gets_a_password(
    tmp_path: Path,
) -> None:
    async with PostgresServer(tmp_path, trusting=True) as server:
        value(server, "CREATE TABLE kept (seven) AS VALUES (7)")
        bare = server.url
    async with PostgresServer(tmp_path) as server:
        assert value(server, "SELECT seven FROM kept") == 7
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(bare)


async def test_after_kill_9_it_is_back_on_its_port_with_its_data(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path) as server:
        url = server.url
        value(server, "CREATE TABLE kept (seven) AS VALUES (7)")
        server.kill()
        assert server.pid is None
        await server.restart()
        assert server.url == url
        assert value(server, "SELECT seven FROM kept") == 7


async def test_a_new_start_in_the_folder_keeps_port_and_data(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path) as server:
        url = server.url
        value(server, "CREATE TABLE kept (seven) AS VALUES (7)")
    async with PostgresServer(tmp_path, settings={"work_mem": "5MB"}) as server:
        assert server.url == url
        assert value(server, "SELECT seven FROM kept") == 7
        assert value(server, "SHOW work_mem") == "5MB"


async def test_a_stale_pid_of_somebody_else_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path) as server:
        server.kill()
    (tmp_path / "data" / "postmaster.pid").write_text(f"{os.getppid()}\n")
    async with PostgresServer(tmp_path) as server:
        assert value(server, "SELECT 1") == 1


@pytest.mark.long
async def test_a_second_server_on_the_folder_is_one_clear_line(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path) as server:
        with pytest.raises(
            UsageError, match=rf"already runs on {tmp_path}/data \(pid {server.pid}\)$"
        ):
            await PostgresServer(tmp_path).start()


async def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^PostgreSQL cannot listen on {HOST}:{port}: the port is taken$"
        ):
            await PostgresServer(tmp_path, port=port).start()


async def test_a_server_that_does_not_start_is_one_line_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(
        ServiceUnreachable, match=r"log: .*postgres\.log.*invalid value for parameter"
    ) as caught:
        await PostgresServer(tmp_path, settings={"wal_level": "nonsense"}).start()
    assert "\n" not in str(caught.value)


async def test_its_psql_works_through_a_link(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path / "postgres") as server:
        psql = toolbox(tmp_path / "bin") / "psql"
        process = Process((psql, server.url, "-Atc", "SELECT 6 * 7"), tmp_path / "log", environ={})
        process.launch()
        assert await process.finish(60) == 0
    assert process.last_words() == "42"


@pytest.mark.skipif(not ROOT, reason="not root: every other test here shows it")
def test_it_starts_for_an_ordinary_user(open_folder: Path) -> None:
    # In a namespace of its own the test is that user, and can still read an interpreter that lives
    # in root's home.
    ordinary = ("unshare", "-U", "--map-user=1000", "--map-group=1000")
    command = (*ordinary, sys.executable, "-c", ORDINARY_USER, open_folder / "postgres")
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.stdout, answer.stderr) == ("streams 1024\n", "")


@pytest.mark.skipif(not ROOT, reason="only root has to give its folder away")
async def test_without_user_namespaces_root_runs_it_as_nobody(open_folder: Path) -> None:
    # A folder that is nobody's already stays so: it was made where user namespaces are forbidden.
    async with PostgresServer(open_folder / "postgres") as server:
        pass
    data = open_folder / "postgres" / "data"
    os.chown(data, NOBODY, NOBODY)
    async with PostgresServer(open_folder / "postgres") as server:
        assert psutil.Process(server.pid).uids().effective == NOBODY
    assert os.stat(data / "PG_VERSION").st_uid == NOBODY


@pytest.mark.skipif(not ROOT, reason="only root has to give its folder away")
async def test_where_nobody_cannot_reach_the_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", NOBODY, NOBODY)
    with pytest.raises(
        ServiceUnreachable, match=r"cannot reach .*: run as an ordinary user, or in a folder that"
    ):
        await PostgresServer(tmp_path).start()
