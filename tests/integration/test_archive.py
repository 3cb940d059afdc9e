"""What goes is in the archive first, and comes back as it was."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import psycopg
import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from streams.archive import write
from streams.archive.parts import ArchiveFailed, Part, decode, encode
from streams.archive.store import Store
from streams.archive.write import Sheet, Writer
from streams.cli import cli
from streams.database import connect, retention
from streams.database.retention import Retention
from streams.errors import StreamsError
from streams.extras import ExtraMissing
from streams.operate.relay_status import standing
from streams.relay.leader.housekeeping import Housekeeping
from streams.settings import load
from tests.fixtures.aged import acts, leaves, old_outbox, retain, seen
from tests.fixtures.forks import Forks
from tests.fixtures.killed import killed
from tests.fixtures.stage import Stage

ROWS = "SELECT id, biz_type, topic, key, payload::text, traceparent, resend_of, created_at FROM {}"
STATES = "SELECT to_jsonb(s) FROM {} AS s"


@pytest.fixture
def aged(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Five ranges of old messages: most settled, some dead."""
    with old_outbox(database) as stage:
        monkeypatch.setenv("DATABASE_URL", stage.bench._url)
        yield stage


def archived(stage: Stage, target: Path | str) -> list[retention.Step]:
    """One pass of retention that archives."""
    return retain(stage, archive=Writer(Store(str(target))))


def streams(*arguments: str, code: int = 0) -> str:
    """What a command says; `main` shows an error as one line."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output + repr(result.exception)
    said = str(result.exception) if isinstance(result.exception, StreamsError) else ""
    return result.output + said


def undrawn(path: Path) -> str:
    """A file's name without what was drawn of it."""
    return re.sub(r"\.[0-9a-f]{8}\.", ".", path.name)


def reasons(steps: list[retention.Step]) -> set[str | None]:
    """Why each range waits, without its name."""
    return {step.reason for step in steps}


def contents(stage: Stage, rows: str, states: str) -> list[Any]:
    """Rows and states of the first range in two tables."""
    return [
        stage.bench.query(f"{ROWS.format(rows)} WHERE id < 10 ORDER BY id"),
        stage.bench.query(f"{STATES.format(states)} WHERE outbox_id < 10 ORDER BY outbox_id"),
    ]


def test_what_went_comes_back_as_it_was_beside_the_outbox(aged: Stage, tmp_path: Path) -> None:
    before, needed = contents(aged, "outbox", "outbox_state"), seen(aged)
    assert acts(archived(aged, tmp_path))[0] == (0, "empty", 2)
    assert seen(aged) == needed
    came_back = ("outbox_restored_0", "outbox_state_restored_0")
    said = streams("archive", "restore", "7", "--from", str(tmp_path))
    assert said.startswith("messages 0 to 9 are in outbox_restored_0 and outbox_state_restored_0")
    assert contents(aged, *came_back) == before
    again = "outbox_restored_0 is there already: DROP TABLE it to restore anew"
    assert again in streams("archive", "restore", "7", "--from", str(tmp_path), code=1)
    # Nobody takes it for part of the outbox.
    assert not set(came_back) & leaves(aged)
    assert seen(aged) == needed
    assert not aged.bench.audit(aged.log).wrong
    # What was left goes later, with the fate that it has then: the later part is right.
    aged.bench.query(
        "UPDATE outbox_state SET status = 'discarded' WHERE outbox_id IN (5, 6) RETURNING 1"
    )
    assert acts(archived(aged, tmp_path))[0] == (0, "empty", 0)
    aged.bench.connection.execute(f"DROP TABLE {', '.join(came_back)}".encode())
    streams("archive", "restore", "0", "--from", str(tmp_path))
    rows, states = contents(aged, *came_back)
    assert rows == before[0]
    assert {row[0]["status"] for row in states} == {"consumed", "discarded"}
    listed = json.loads(streams("archive", "list", "--json", "--from", str(tmp_path)))
    assert [(part["first"], part["part"], part["rows"]) for part in listed[:3]] == [
        (0, 1, 9), (0, 2, 2), (10, 1, 10),
    ]  # fmt: skip
    assert streams("archive", "list", "--from", str(tmp_path)).count("archived at") == len(listed)
    assert streams("archive", "show", "3", "--from", str(tmp_path)).count(": whole") == 2


def test_times_that_python_does_not_have_are_archived_and_come_back(
    aged: Stage, tmp_path: Path
) -> None:
    times = {2: "20000-02-29 12:00:00.5", 3: "-infinity", 4: "0044-03-15 00:00:00 BC"}
    for outbox_id, time in {**times, 5: "infinity"}.items():  # 5 is dead, and stays
        aged.bench.query(
            "UPDATE outbox SET created_at = %s WHERE id = %s RETURNING 1", time, outbox_id
        )
    aged.bench.query(
        "UPDATE outbox_state SET updated_at = 'infinity' WHERE outbox_id = 4 RETURNING 1"
    )
    told = "SELECT id, created_at::text, updated_at::text FROM {} JOIN {} ON outbox_id = id"
    told += " WHERE id < 10 ORDER BY id"
    before = aged.bench.query(told.format("outbox", "outbox_state"))
    assert [each[:3] for each in acts(archived(aged, tmp_path))[:2]] == [
        (0, "empty", 2), (10, "empty", 3),
    ]  # fmt: skip
    streams("archive", "restore", "7", "--from", str(tmp_path))
    came_back = told.format("outbox_restored_0", "outbox_state_restored_0")
    assert aged.bench.query(came_back) == before
    [first, *_] = json.loads(streams("archive", "list", "--json", "--from", str(tmp_path)))
    assert first["oldest"] < first["newest"] < "2999"


def test_a_value_that_cannot_be_read_holds_up_its_own_range_only(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Writer.archive

    async def archive(self: Writer, connection: Any, first: int, last: int, **how: Any) -> Any:
        if first == 10:
            raise psycopg.DataError("timestamp too large: 'a secret'")
        return await written(self, connection, first, last, **how)

    monkeypatch.setattr(Writer, "archive", archive)
    first, second, third, *_ = archived(aged, tmp_path)
    assert (first.act, second.act, third.act) == ("empty", "wait", "empty")
    assert second.reason == "a value of one of its rows cannot be read (SQLSTATE -)"


def test_whoever_is_killed_after_it_was_archived_does_not_archive_it_again(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Retention, "_empty_now", dies)
        assert reasons(archived(aged, tmp_path)) == {"killed"}
    manifests = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    # One was killed earlier: a part without its manifest is none, and is written over.
    next(tmp_path.glob("*0000019.1.json")).unlink()
    next(tmp_path.glob("*0000019.1.*.outbox.parquet")).write_bytes(b"half")
    assert [step.act for step in archived(aged, tmp_path)] == ["empty"] * 4 + ["drop"]
    now = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    # What was begun and given up is not left beside what counts.
    assert sorted(map(undrawn, now)) == sorted(map(undrawn, manifests))
    changed = {path.name for path in now if now[path] != manifests.get(path)}
    assert {name[30:39] for name in changed} == {"000000019"}


def test_a_process_that_is_killed_while_it_archives_loses_nothing(
    aged: Stage, tmp_path: Path, forks: Forks
) -> None:
    before, folder = contents(aged, "outbox", "outbox_state"), tmp_path / "archive"
    for word in ("manifest", "LOCK TABLE ONLY", "COMMIT"):
        killed(aged, forks, tmp_path, word, "before", str(folder))
        assert contents(aged, "outbox", "outbox_state") == before
    assert len(list(folder.glob("*.json"))) == 1
    assert [step.act for step in archived(aged, folder)] == ["empty"] * 4 + ["drop"]
    streams("archive", "restore", "1", "--from", str(folder))
    assert contents(aged, "outbox_restored_0", "outbox_state_restored_0") == before


def test_what_changes_while_it_is_archived_is_archived_once_more(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody erases a text, somebody discards a message: the part before is not enough."""
    archive = Writer.archive

    async def interrupted(*given: Any, **named: Any) -> Any:
        part = await archive(*given, **named)
        if part.first == 0:
            aged.bench.query("UPDATE outbox_state SET status = 'discarded' WHERE outbox_id = 5"
                             " RETURNING 1")  # fmt: skip
        if part.first == 10:
            aged.bench.query(
                "INSERT INTO outbox_actions (who, act) VALUES ('ann', 'erase') RETURNING 1"
            )
        return part

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "archive", interrupted)
        steps = archived(aged, tmp_path)
    assert [step.reason for step in steps[:2]] == [retention.CHANGED] * 2
    assert acts(archived(aged, tmp_path))[:2] == [(0, "empty", 1), (10, "empty", 3)]
    [first, second] = Store(str(tmp_path)).about(0, 9)
    assert (first.whole, second.whole, second.part) == (True, True, 2)
    streams("archive", "restore", "5", "--from", str(tmp_path))
    assert aged.bench.query("SELECT status FROM outbox_state_restored_0 WHERE outbox_id = 5") == [
        ("discarded",)
    ]


async def dies(*_: Any) -> None:
    """Instead of emptying a range."""
    raise retention.Busy("killed")


def test_nothing_goes_while_the_archive_cannot_be_written(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, partitions = seen(aged), leaves(aged)
    (tmp_path / "file").touch()
    for reason in reasons(archived(aged, tmp_path / "file")):
        assert (reason or "").startswith(f"archive {tmp_path / 'file'}: ")
        assert (reason or "").endswith(" cannot be listed: Not a directory")
    assert "cannot be listed: Not a directory" in streams(
        "archive", "list", "--from", str(tmp_path / "file"), code=1
    )
    assert streams("archive", "list", "--from", str(tmp_path / "nowhere"), code=1) == (
        f"--from is {tmp_path / 'nowhere'}: nothing is there"
    )
    # A disk that is full.
    full = tmp_path / "full"
    full.mkdir()
    name = f"{0:019}-{9:019}.1.{'0' * 8}.outbox.parquet"
    (full / name).symlink_to("/dev/full")
    with monkeypatch.context() as patched:
        patched.setattr(secrets, "token_hex", lambda _: "0" * 8)
        step = archived(aged, full)[0]
    assert step.reason == f"archive {full}: {name} cannot be written: No space left on device"
    assert aged.bench.query("SELECT count(*) FROM outbox WHERE id < 10") == [(9,)]
    assert (seen(aged), leaves(aged) - partitions) == (before, set())
    # Of another database.
    other = tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(Retention, "_empty_now", dies)
        archived(aged, other)
    for path in other.glob("*.json"):
        part = decode(path.read_bytes(), path.name)
        path.write_bytes(encode(msgspec.structs.replace(part, database="another")))
    assert "of another database: give this one a folder of its own" in str(archived(aged, other)[0])


def test_a_place_that_cannot_be_looked_at_is_not_an_empty_one(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be archived once more as the first part, over what a range was emptied into."""
    archived(aged, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stale(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    discard_one(aged)
    with monkeypatch.context() as patched:
        for name in ("ls", "info"):
            patched.setattr(fsspec.implementations.local.LocalFileSystem, name, stale)
        told = f"archive {tmp_path}: cannot be listed: Stale file handle"
        assert told in {step.reason for step in archived(aged, tmp_path)}
        assert told in streams("archive", "list", "--from", str(tmp_path), code=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_what_is_left_of_a_range_is_never_its_first_part(aged: Stage, tmp_path: Path) -> None:
    """Though no manifest says any more that there is one: its files may be all there is of it."""
    archived(aged, tmp_path)
    files = {
        path.name: path.read_bytes()
        for path in tmp_path.glob("*0000009.1.*")
        if path.suffix != ".json"
    }
    for manifest in tmp_path.glob("*.json"):
        manifest.unlink()
    outbox_id = discard_one(aged)
    archived(aged, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    parts, _ = Store(str(tmp_path)).parts()
    assert (outbox_id // 10, {part.part for part in parts if not part.whole}) == (0, {2})


def test_an_outbox_that_is_archived_is_emptied_by_nobody_without_its_archive(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay of another configuration, or a person who does what it could not."""
    assert {step.act for step in archived(aged, tmp_path)} >= {"empty"}
    assert aged.bench.query("SELECT archived FROM outbox_retired ORDER BY first_id LIMIT 1") == [
        (f"{0:019}-{9:019}.1",)
    ]
    discard_one(aged)
    for dry in (True, False):
        step = retain(aged, dry=dry)[0]
        assert (step.act, step.reason) == ("wait", retention.LACKS_ARCHIVE)
    monkeypatch.setenv("STREAMS_OUTBOX__RETENTION_DAYS", "14")
    assert "messages 0 to 9" in streams("retention", code=1)
    monkeypatch.setenv("STREAMS_OUTBOX__ARCHIVE", str(tmp_path))
    assert "expected no outbox.archive" in streams("retention", "--without-archive", code=1)
    monkeypatch.delenv("STREAMS_OUTBOX__ARCHIVE")
    assert "messages 0 to 9" in streams("retention", "--without-archive")
    assert aged.bench.query("SELECT archived FROM outbox_retired ORDER BY first_id LIMIT 1") == [
        ("",)
    ]
    discard_one(aged)
    assert retain(aged)[0].act == "empty"


def test_what_an_earlier_release_empties_beside_this_one_ends_no_archive(
    aged: Stage, tmp_path: Path
) -> None:
    """It archives too, and does not say so."""
    archived(aged, tmp_path)
    discard_one(aged)
    write = aged.bench.connection.execute
    write("UPDATE outbox_retired SET archived = NULL, at = now() WHERE first_id = 0")
    assert retain(aged)[0].reason == retention.LACKS_ARCHIVE
    write("UPDATE outbox_retired SET archived = NULL")
    assert retain(aged)[0].act == "empty"


def test_a_relay_that_may_not_empty_says_so_where_there_is_an_archive_too(
    aged: Stage, tmp_path: Path, name: str
) -> None:
    archived(aged, tmp_path)
    discard_one(aged)
    aged.bench.connection.execute(
        f"CREATE ROLE {name}_relay LOGIN;"
        f" GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {name}_relay".encode()
    )
    environ = {
        "DATABASE_URL": aged.bench._url.replace("postgres@", f"{name}_relay@"),
        "STREAMS_OUTBOX__RETENTION_DAYS": "14",
        "STREAMS_OUTBOX__ARCHIVE": str(tmp_path),
    }

    async def round_() -> None:
        settings = load(environ=environ)
        async with await connect(settings.database_url) as connection:
            await Housekeeping(settings, []).round(connection)

    try:
        aged.bench.run(round_())
        [relay] = standing(aged.bench.operators)
        aged.bench.operators.rollback()
        assert f"role {name}_relay may not drop partitions" in relay.retention[0]
    finally:
        aged.bench.connection.execute(
            f"DROP OWNED BY {name}_relay; DROP ROLE {name}_relay".encode()
        )


def test_a_range_of_which_only_the_rest_is_there_is_told(aged: Stage, tmp_path: Path) -> None:
    archived(aged, tmp_path)
    discard_one(aged)
    archived(aged, tmp_path)
    assert "whole" in streams("archive", "show", "3", "--from", str(tmp_path))
    for path in tmp_path.glob("*0000009.1.*"):
        path.unlink()
    told = "messages 0 to 9: no part has all of them, only what was left"
    assert told in streams("archive", "show", "3", "--from", str(tmp_path), code=1)
    assert told in streams("archive", "restore", "3", "--from", str(tmp_path), code=1)
    assert aged.bench.query("SELECT to_regclass('outbox_restored_0') IS NULL") == [(False,)]


def discard_one(aged: Stage) -> int:
    """The first of the dead messages that were left of the first range."""
    [(outbox_id,)] = aged.bench.query(
        "UPDATE outbox_state SET status = 'discarded', topic = NULL, key = NULL WHERE outbox_id ="
        " (SELECT min(outbox_id) FROM outbox_state WHERE status = 'dead') RETURNING outbox_id"
    )
    return int(outbox_id)


def test_who_was_overtaken_writes_over_nothing(aged: Stage, tmp_path: Path) -> None:
    """A relay whose machine was paused while it archived; another one emptied the range."""
    store = Store(str(tmp_path))
    columns = [("id", "bigint")]
    paused = Sheet(store, f"{0:019}-{9:019}.1.{'0' * 8}.outbox.parquet", columns)
    archived(aged, tmp_path)
    paused.add([(1,)])
    with pytest.raises(ArchiveFailed, match="No such file"):  # it was taken away, as given up
        paused.close()
    for part in store.about(0, 9):
        store.verify(part)


def test_who_was_overtaken_takes_no_manifest_and_no_file_away(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had verified what it wrote; what is there since tells how the range was emptied."""
    overtaken: list[Part] = []
    save = Store.save

    def late(store: Store, part: Part) -> None:
        overtaken.append(part)
        raise ArchiveFailed("paused")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "save", late)
        archived(aged, tmp_path)
    archived(aged, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store = Store(str(tmp_path))
    for part in overtaken:
        with pytest.raises(ArchiveFailed, match="was written by another process meanwhile"):
            save(store, part)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    for part in store.parts()[0]:
        store.verify(part)


async def test_a_place_that_hangs_holds_up_nobody_else(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, inside = threading.Event(), threading.Event()

    class Hanging(Store):
        def writing(self, name: str) -> Any:
            inside.set()
            going_on.wait()
            return super().writing(name)

    monkeypatch.setattr(write, "PATIENCE", 0.2)
    async with await connect(aged.bench._url) as connection:
        writer = Writer(Hanging(str(tmp_path)))
        with pytest.raises(ArchiveFailed, match=r"does not answer within 0\.2 s"):
            async with asyncio.timeout(30):
                await writer.archive(connection, 0, 9, whole=True)
        assert inside.is_set()
    going_on.set()


def test_large_rows_behind_small_ones_are_not_held_at_once(
    aged: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = list[int]()
    add = Sheet.add

    def seen_by(sheet: Sheet, rows: Any) -> None:
        added.append(sum(len(value) for row in rows for value in row if isinstance(value, str)))
        add(sheet, rows)

    monkeypatch.setattr(Sheet, "add", seen_by)
    monkeypatch.setattr(write, "BATCH_BYTES", 300)
    assert "empty" in {step.act for step in archived(aged, tmp_path)}
    # One row more than that at most.
    assert max(added) < 300 + 300 and len(added) > 5


def test_a_file_that_was_changed_is_not_believed(aged: Stage, tmp_path: Path) -> None:
    archived(aged, tmp_path)
    file = next(tmp_path.glob("*0000009.1.*.outbox.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = streams("archive", "show", "3", "--from", str(tmp_path), code=1)
    assert f"{file.name} was changed after it was written" in said
    said = streams("archive", "restore", "3", "--from", str(tmp_path), code=1)
    assert f"{file.name} was changed after it was written" in said
    assert aged.bench.query("SELECT to_regclass('outbox_restored_0') IS NULL") == [(True,)]
    manifest = next(tmp_path.glob("*0000009.1.json"))
    manifest.write_text(manifest.read_text().replace('"rows": 9', '"rows": 8'))
    said = streams("archive", "list", "--from", str(tmp_path), code=1)
    line = f"streams: {tmp_path}: {manifest.name} was changed after it was written"
    assert [each for each in said.splitlines() if "archived at" not in each] == [line]
    manifest.write_text('{"format": 2}')
    assert "its format is 2, and this release reads 1" in streams(
        "archive", "list", "--from", str(tmp_path), code=1
    )
    manifest.write_bytes(b"\xff")
    assert "is no manifest" in streams("archive", "list", "--from", str(tmp_path), code=1)
    manifest.unlink()
    assert "message 3 is in no range of the archive" in streams(
        "archive", "show", "3", "--from", str(tmp_path), code=1
    )


def test_a_manifest_that_is_not_believed_holds_up_no_other_range(
    aged: Stage, tmp_path: Path
) -> None:
    archived(aged, tmp_path)
    whole = json.loads(streams("archive", "list", "--json", "--from", str(tmp_path)))
    manifest = next(tmp_path.glob("*0000009.1.json"))
    data = manifest.read_bytes()
    manifest.write_bytes(data[: len(data) // 2])
    listed = CliRunner().invoke(cli, ["archive", "list", "--json", "--from", str(tmp_path)])
    assert (listed.exit_code, json.loads(listed.stdout)) == (1, whole[1:])
    assert listed.stderr == (
        f"streams: {tmp_path}: {manifest.name} is no manifest of an archive, or was cut short\n"
    )
    streams("archive", "show", "12", "--from", str(tmp_path))
    said = streams("archive", "restore", "12", "--from", str(tmp_path))
    assert said.startswith("messages 10 to 19 are in outbox_restored_10")
    assert "or was cut short" in streams("archive", "restore", "3", "--from", str(tmp_path), code=1)
    # Under the name of another range it is that range's fault.
    manifest.write_bytes(next(tmp_path.glob("*0000019.1.json")).read_bytes())
    said = streams("archive", "show", "3", "--from", str(tmp_path), code=1)
    assert said.endswith(f"{manifest.name} is the manifest of {10:019}-{19:019}.1")
    streams("archive", "show", "12", "--from", str(tmp_path))


def test_what_is_restored_has_the_columns_of_then(aged: Stage, tmp_path: Path) -> None:
    aged.bench.connection.execute("ALTER TABLE outbox ADD old int4range, ADD older integer")
    aged.bench.connection.execute("UPDATE outbox SET old = '[1,3)', older = 7 WHERE id = 1")
    archived(aged, tmp_path)
    aged.bench.connection.execute("ALTER TABLE outbox DROP old, DROP older, ADD young text")
    streams("archive", "restore", "1", "--from", str(tmp_path))
    assert aged.bench.query("SELECT old, older FROM outbox_restored_0 WHERE id = 1") == [
        ("[1,3)", 7)
    ]
    # A type that a manifest names becomes part of a statement: none but those that we know.
    path = next(tmp_path.glob("*0000019.1.json"))
    part = decode(path.read_bytes(), path.name)
    columns = [("id", "bigint"), ("x", "text); DROP TABLE outbox; --")]
    changed = msgspec.structs.replace(
        part, outbox=msgspec.structs.replace(part.outbox, columns=columns)
    )
    path.write_bytes(encode(changed))
    said = streams("archive", "restore", "11", "--from", str(tmp_path), code=1)
    assert "'x' is of an unknown type" in said


def test_what_postgresql_refuses_is_told_without_the_text(aged: Stage, tmp_path: Path) -> None:
    archived(aged, tmp_path)
    path = next(tmp_path.glob("*0000009.1.json"))
    part, store = decode(path.read_bytes(), path.name), Store(str(tmp_path))
    table = parquet.read_table(tmp_path / part.outbox.name)
    payload = pyarrow.array(["a secret"] * table.num_rows)
    table = table.set_column(table.schema.get_field_index("payload"), "payload", payload)
    with store.writing(part.outbox.name) as written:
        parquet.write_table(table, written)
    file = msgspec.structs.replace(part.outbox, bytes=written.bytes, sha256=written.sha256)
    path.unlink()
    store.save(msgspec.structs.replace(part, outbox=file))
    said = streams("archive", "restore", "1", "--from", str(tmp_path), code=1)
    assert said.strip() == (
        f"{part.outbox.name}: messages 1 to 9 are refused by PostgreSQL (SQLSTATE 22P02)"
    )
    assert aged.bench.query("SELECT to_regclass('outbox_restored_0') IS NULL") == [(True,)]


def test_any_place_of_fsspec_will_do_and_a_leader_says_what_is_missing(
    aged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "memory://bucket/outbox"
    monkeypatch.setenv("STREAMS_OUTBOX__RETENTION_DAYS", "14")
    monkeypatch.setenv("STREAMS_OUTBOX__ARCHIVE", target)

    def told() -> list[str]:
        async def round_() -> None:
            async with await connect(aged.bench._url) as connection:
                await Housekeeping(load(), []).round(connection)

        aged.bench.run(round_())
        [relay] = standing(aged.bench.operators)
        aged.bench.operators.rollback()
        return list(relay.retention)

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)
        missing = "outbox.archive needs the extra 'archive' (pyarrow is missing): run `pip install"
        with pytest.raises(ExtraMissing):
            Store(target)
        assert missing in streams("retention", code=1)
        assert missing in told()[0]
        assert aged.bench.query("SELECT count(*) FROM outbox_retired") == [(0,)]
    assert not told()
    assert aged.bench.query("SELECT count(*) FROM outbox_retired") == [(4,)]
    assert len(fsspec.filesystem("memory").ls("/bucket/outbox")) == 12
    assert streams("archive", "show", "3").count(": whole") == 1
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    monkeypatch.delenv("STREAMS_OUTBOX__ARCHIVE")
    assert "outbox.archive is not set" in streams("archive", "list", code=1)
    secret = "nowhere://user:secret@bucket"
    with pytest.raises(ArchiveFailed, match=r"nowhere://user:\*\*\*@bucket: cannot be reached"):
        Store(secret)
    monkeypatch.setenv("STREAMS_OUTBOX__ARCHIVE", secret)
    assert ":secret@" not in repr(load())
