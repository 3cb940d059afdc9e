"""`streams up`, `env`, `status` and `down` as a person uses them, in an empty folder."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.fixtures.forks import ForkedProcess, Forks

pytestmark = pytest.mark.timeout(600)

START = 240
HELLO = """{"user_id": 1, "conversation_id": "c1", "role": "user", "message": "hi"}"""
# Only one process, and no worker: quick to start.
SHOP = "shop: sleep 600\n"
STUBBORN = """\
stubborn: python -c "from signal import *; signal(SIGTERM, SIG_IGN); pause()"
worker: faust -q -A streams.app worker
"""


def environ() -> dict[str, str]:
    """This one without settings, and with this Python's programs on PATH."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STREAMS_") and name not in ("DATABASE_URL", "BROKER_URL")
    }
    return {**clean, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"}


def streams(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = ("streams", *arguments)
    return subprocess.run(
        command,
        cwd=folder,
        env={**environ(), **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=START,
    )


def ask(folder: Path, statement: str) -> str:
    """What the database says, without a shell and two programs: for a test that asks often."""
    url = json.loads((folder / ".dev" / "services.json").read_text())["database_url"]
    with psycopg.connect(url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return "|".join(map(str, row or ()))


def tell(folder: Path, *statements: str) -> None:
    """Run these in one transaction."""
    url = json.loads((folder / ".dev" / "services.json").read_text())["database_url"]
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def psql(folder: Path, statement: str) -> str:
    """What a plain psql in a shell says, settings from `streams env`."""
    script = 'eval "$(streams env)" && psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -qAt'
    answer = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environ(),
        input=statement,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()


def processes(folder: Path) -> list[str]:
    """The processes that work in this folder or were started with something in it."""
    running = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            str(folder) in word for word in words
        ):
            running.append(f"{process.pid} {' '.join(words)[:100]}")
    return running


@contextmanager
def begun(folder: Path, *arguments: str, **files: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a session of its own; it is killed when the test fails."""
    with subprocess.Popen(
        ("streams", *arguments), cwd=folder, env=environ(), start_new_session=True, **files
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no deployment behind, which would disturb all that come after it."""
    yield
    for line in processes(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(int(line.partition(" ")[0]), signal.SIGKILL)


def wait(condition: Callable[[], Any], seconds: float) -> Any:
    """What the condition gives once it is true; AssertionError when it takes longer."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)
    return answer


Command = Callable[..., "subprocess.CompletedProcess[str]"]
Status = Callable[[Path], Mapping[str, Any]]


@pytest.fixture
def forked(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Like `streams`, from a process that has imported it: where tests ask again and again."""
    out, error = (tmp_path_factory.mktemp("forked") / name for name in ("out", "error"))

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        for file in (out, error):
            file.write_text("")
        command = ("streams", *arguments)
        process = ForkedProcess(forks, command, out, environ(), error=error)
        process.run_in(folder).launch()
        code = asyncio.run(process.finish(START))
        return subprocess.CompletedProcess(command, code, out.read_text(), error.read_text())

    return run


@pytest.fixture
def status(forked: Command) -> Status:
    """`status(folder)`: what `streams status` says there.

    It ends with 1 exactly when something of it needs somebody now.
    """

    def asked(folder: Path) -> Mapping[str, Any]:
        answer = forked(folder, "status", "--json")
        assert answer.returncode in (0, 1), answer.stderr
        told: Mapping[str, Any] = json.loads(answer.stdout)
        assert answer.returncode == any(fault["severity"] == "bad" for fault in told["faults"])
        return told

    return asked


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where everything runs, left by `streams up --detach`."""
    folder = tmp_path_factory.mktemp("up")
    # A worker that is killed is missed soon.
    soon = {"STREAMS_WORKER__SESSION_TIMEOUT": "6"}
    answer = streams(folder, "up", "--detach", "--workers", "2", **soon)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    # The pages' address comes first, then where everything is.
    assert answer.stdout.count("http://127.0.0.1:") == 3
    assert re.match(r"pages +http://127\.0\.0\.1:\d+/outbox/ ", answer.stdout)
    yield folder
    assert streams(folder, "down").returncode == 0
    assert processes(folder) == []


def test_a_message_enqueued_with_plain_psql_is_persisted_within_a_second(up: Path) -> None:
    enqueue = f"SELECT outbox_enqueue('chat_history_persist', 'c1', '{HELLO}')"
    statement = """
        SELECT h.message_content, s.status,
               s.updated_at AT TIME ZONE 'UTC' - h.created_at < interval '1 second'
        FROM chat_histories AS h
        JOIN outbox_state AS s USING (outbox_id)
        WHERE h.outbox_id =
    """
    said: list[str] = []
    # The first finds everything cold, and a busy machine may hold up another one; not each.
    while said[-1:] != ["hi|consumed|True"] and len(said) < 5:
        persisted = partial(ask, up, statement + psql(up, enqueue))
        said.append(wait(persisted, 20))
    assert said[-1] == "hi|consumed|True", said


def test_a_message_of_a_transaction_that_rolled_back_never_appears(up: Path) -> None:
    tell(
        up,
        f"SELECT outbox_enqueue('chat_history_persist', 'gone', '{HELLO.replace('c1', 'gone')}')",
        "ROLLBACK",
    )
    tell(
        up,
        f"SELECT outbox_enqueue('chat_history_persist', 'after', '{HELLO.replace('c1', 'after')}')",
    )
    assert wait(
        lambda: ask(up, "SELECT count(*) FROM chat_histories WHERE chat_id = 'after'") == "1", 20
    )
    assert ask(up, "SELECT count(*) FROM outbox WHERE key = 'gone'") == "0"


def test_status_has_its_stable_shape(up: Path, status: Status, forked: Command) -> None:
    # A rebalance moves partitions for a moment: all eight are somewhere in the end.
    told = wait(lambda: _balanced(status(up)), 60)
    assert set(told) == {"services", "relays", "workers", "messages", "faults"}
    assert wait(lambda: not status(up)["faults"], 30)
    assert {name: set(service) for name, service in told["services"].items()} == {
        "postgresql": {"pid", "url"},
        "kafka": {"pid", "url"},
    }
    [relay] = told["relays"]
    assert set(relay) == {"pid", "mode", "leader", "lag_rows", "lag_seconds"}
    assert (relay["mode"], relay["leader"]) == ("cdc", True)
    assert set(told["messages"]) >= {"pending", "published", "retrying", "parked", "dead"}
    assert all(psutil.pid_exists(service["pid"]) for service in told["services"].values())
    assert "postgresql://" in forked(up, "status").stdout


def test_settings_tell_where_they_come_from(up: Path, forked: Command) -> None:
    shown = forked(up, "settings").stdout.splitlines()
    assert any(
        line.startswith("  url: 'postgresql://") and line.endswith("# .dev/services.json")
        for line in shown
    )
    assert "  name: outbox" in shown


def test_nobody_else_reads_the_folder_or_sees_the_password(up: Path, forked: Command) -> None:
    root = up / ".dev"
    password = (root / "postgres" / "password").read_text()
    assert stat.S_IMODE(root.stat().st_mode) & 0o066 == 0
    for name in ("services.json", "postgres/password", "postgres/pgpass"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o600
    said = [
        forked(up, *command)
        for command in (("env",), ("settings",), ("status",), ("status", "--json"), ("up",))
    ]
    shown = "".join(answer.stdout + answer.stderr for answer in said)
    assert password not in shown
    assert "postgres:***@" in shown
    for log in (root / "logs").iterdir():
        assert password not in log.read_text(errors="replace"), log


def test_a_second_up_says_who_runs(up: Path, status: Status, forked: Command) -> None:
    answer = forked(up, "up")
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"streams: `streams up` already runs in {up} (pid ")
    assert status(up)["services"]["postgresql"]["url"] in answer.stderr
    assert forked(up, "up", "--detach").returncode == 2


@pytest.mark.long
def test_a_killed_worker_comes_back_and_works(up: Path, status: Status) -> None:
    killed = status(up)["workers"][0]["pid"]
    os.kill(killed, signal.SIGKILL)
    wait(lambda: status(up)["workers"][0]["pid"] not in (None, killed), 30)
    wait(lambda: _balanced(status(up)), 60)
    # For a minute the one that was killed is said to be silent.
    wait(lambda: {fault["code"] for fault in status(up)["faults"]} <= {"worker.silent"}, 60)


def check_relay(folder: Path, status: Status, mode: str) -> None:
    """The relay of this deployment, which has no worker, publishes in this mode."""
    tell(folder, f"SELECT outbox_enqueue('chat_history_persist', 'c1', '{HELLO}')")
    wait(lambda: status(folder)["relays"][0]["lag_rows"] == 0, 60)
    [relay] = status(folder)["relays"]
    assert (relay["mode"], relay["leader"]) == (mode, True)
    # Nobody consumes: that is said, however well the relay does.
    faults = status(folder)["faults"]
    # For a minute a relay that was killed while it led is said to be silent.
    [title] = [fault["title"] for fault in faults if fault["code"] != "worker.silent"]
    assert title.startswith(
        "no worker is in consumer group outbox-streams, nobody reads chat-history"
    )


@pytest.mark.long
def test_debezium_does_the_same_work(tmp_path: Path, status: Status) -> None:
    (tmp_path / "Procfile").write_text("relay: streams relay\n")
    assert streams(tmp_path, "up", "--detach", "--relay", "debezium").returncode == 0
    try:
        check_relay(tmp_path, status, "debezium")
    finally:
        assert streams(tmp_path, "down").returncode == 0
    assert processes(tmp_path) == []


def test_without_services_commands_say_what_to_do(tmp_path: Path, forked: Command) -> None:
    answer = forked(tmp_path, "env")
    assert (answer.returncode, answer.stdout) == (3, "")
    assert (
        answer.stderr == "streams: nothing runs in this folder: `streams up` starts the services\n"
    )
    assert forked(tmp_path, "status").returncode == 2
    assert forked(tmp_path, "down").stdout == "nothing runs in this folder\n"


def test_status_without_postgresql_ends_with_3(tmp_path: Path, forked: Command) -> None:
    (tmp_path / "faust.yml").write_text("database: {url: postgresql://me:secret@127.0.0.1:1/x}\n")
    answer = forked(tmp_path, "status")
    assert answer.returncode == 3
    assert "secret" not in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_ctrl_c_stops_everything_and_the_next_up_finds_the_data(tmp_path: Path) -> None:
    first = _on_a_terminal(
        tmp_path, "up", "--demo", "--trouble", "--workers", "1", until="persisted 1"
    )
    assert "rolled back" in first
    assert processes(tmp_path) == []
    (tmp_path / "Procfile").write_text(SHOP)
    assert streams(tmp_path, "up", "--detach").returncode == 0
    # What was persisted first may have been of either of the demo's biz types.
    assert int(ask(tmp_path, "SELECT count(*) FROM outbox_state WHERE status = 'consumed'")) > 0
    assert (
        ask(tmp_path, "SELECT topic FROM outbox_biz_types WHERE biz_type = 'demo_summaries'")
        == "demo-summaries"
    )
    assert streams(tmp_path, "down").stdout == "stopped\n"
    assert processes(tmp_path) == []


@pytest.mark.long
def test_a_changed_agent_starts_workers_again_and_a_second_ctrl_c_stops_at_once(
    tmp_path: Path,
) -> None:
    assert streams(tmp_path, "init", "--package", "shop", "--agent", "orders").returncode == 0
    (tmp_path / "Procfile").write_text(STUBBORN)
    said = tmp_path / "said.txt"

    def worker() -> Any:
        note = json.loads((tmp_path / ".dev" / "services.json").read_text())
        return next(each["pid"] for each in note["processes"] if each["name"] == "worker.1")

    with (
        said.open("w") as output,
        begun(tmp_path, "up", "--reload", stdout=output, stderr=output) as process,
    ):
        wait(lambda: "ready;" in said.read_text(), START)
        before = worker()
        agent = tmp_path / "shop" / "agents" / "orders.py"
        agent.write_text(agent.read_text() + "CHANGED = True\n")
        wait(lambda: "orders.py changed, the workers start again" in said.read_text(), 20)
        wait(lambda: worker() not in (None, before), 20)
        os.kill(process.pid, signal.SIGINT)
        # In order it would take ten seconds: one process does not listen.
        wait(lambda: not psutil.pid_exists(worker() or before), 8)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, said.read_text()
        assert time.monotonic() - began < 6
    assert processes(tmp_path) == []


@pytest.mark.long
def test_a_supervisor_killed_with_9_leaves_nothing_and_the_next_up_recovers(
    tmp_path: Path, status: Status, forked: Command
) -> None:
    """That one with another relay: it does the same work."""
    (tmp_path / "Procfile").write_text("relay: streams relay\n")
    assert streams(tmp_path, "up", "--detach").returncode == 0
    note = json.loads((tmp_path / ".dev" / "services.json").read_text())
    os.kill(note["pid"], signal.SIGKILL)
    wait(lambda: processes(tmp_path) == [], 20)
    assert forked(tmp_path, "env").returncode == 3
    assert streams(tmp_path, "up", "--detach", "--relay", "poll").returncode == 0
    check_relay(tmp_path, status, "poll")
    assert (
        json.loads((tmp_path / ".dev" / "services.json").read_text())["database_url"]
        == note["database_url"]
    )
    assert streams(tmp_path, "down").returncode == 0
    assert processes(tmp_path) == []


def _balanced(told: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The status once two workers share the eight partitions."""
    shares = [worker["partitions"].get("chat-history", []) for worker in told["workers"]]
    whole = sorted(partition for share in shares for partition in share) == list(range(8))
    return told if whole and all(shares) else None


def _on_a_terminal(folder: Path, *arguments: str, until: str) -> str:
    """Run it on a terminal until it has shown the text, press Ctrl-C; what it showed."""
    ours, theirs = pty.openpty()
    with begun(folder, *arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        deadline = time.monotonic() + START
        while until not in shown:
            assert time.monotonic() < deadline, shown[-2000:]
            shown += os.read(ours, 65536).decode(errors="replace")
        os.kill(process.pid, signal.SIGINT)
        shown += _rest(ours)
        assert process.wait(60) == 0
    os.close(ours)
    return shown


def _rest(terminal: int) -> str:
    """What still comes until the other side is closed, which Linux reports as an error."""
    shown = ""
    while True:
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            return shown
