"""What `streams up` runs: several workers share a folder and its settings, and no port."""

from __future__ import annotations

import socket
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from streams.dev.ports import HOST, free_port
from streams.dev.screen import Screen
from streams.dev.supervisor import Supervisor, UpOptions
from streams.dev.workplace import Workplace

PROBE = "STREAMS_WEB__PROBE"


@pytest.fixture
def said() -> StringIO:
    return StringIO()


def environs(folder: Path, said: StringIO) -> list[dict[str, str]]:
    """What each of three workers is given of its own."""
    screen = Screen(Console(file=said, soft_wrap=True))
    programs = Supervisor(Workplace(folder), UpOptions(workers=3), screen)._programs()
    return [each.environ for each in programs if each.name.startswith("worker")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_worker_serves_pages_and_health_at_ports_of_its_own(
    folder: Path, said: StringIO
) -> None:
    wanted = f"0.0.0.0:{free_port()}"
    (folder / "faust.yml").write_text(f"web: {{probe: '{wanted}'}}")
    workers = environs(folder, said)
    assert workers[0][PROBE] == wanted
    assert all(each[PROBE].startswith("0.0.0.0:") for each in workers)
    pages = {each["STREAMS_WEB__PORT"] for each in workers}
    probes = {each[PROBE].rpartition(":")[2] for each in workers}
    assert len(pages | probes) == 6
    assert f"worker.2 serves health at {workers[1][PROBE]}, {wanted} is taken" in said.getvalue()
    assert "worker.1 serves" not in said.getvalue()
    assert environs(folder, said) == workers  # remembered, for whoever probes them


def test_an_address_that_another_program_has_is_left_to_it(folder: Path, said: StringIO) -> None:
    with socket.create_server((HOST, free_port())) as other:
        wanted = f"{HOST}:{other.getsockname()[1]}"
        (folder / "faust.yml").write_text(f"web: {{probe: '{wanted}'}}")
        assert wanted not in {each[PROBE] for each in environs(folder, said)}


def test_without_a_probe_none_is_served(folder: Path, said: StringIO) -> None:
    assert all(set(each) == {"STREAMS_WEB__PORT"} for each in environs(folder, said))


def test_settings_that_are_being_written_end_nothing_that_has_begun(
    folder: Path, said: StringIO
) -> None:
    """PostgreSQL and Kafka take seconds to start, and the processes come after them."""
    supervisor = Supervisor(
        Workplace(folder), UpOptions(), Screen(Console(file=said, soft_wrap=True))
    )
    (folder / "faust.yml").write_text("web: {probe: '")
    assert supervisor._environ()["STREAMS_RELAY__MODE"] == "cdc"
    assert [each.name for each in supervisor._programs()] == ["relay", "worker.1"]
