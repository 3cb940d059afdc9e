"""Ports: free ones are chosen, remembered, and given up when somebody else has them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from streams.dev.ports import HOST, RANGE, claim, free_port, is_free, remembered_port
from streams.errors import UsageError


def test_a_chosen_port_is_free_and_outside_the_range_of_outgoing_connections() -> None:
    port = free_port()
    assert port in RANGE
    assert is_free(port)


def test_a_port_is_remembered(tmp_path: Path) -> None:
    memory = tmp_path / "ports" / "worker.1"
    assert remembered_port(memory) == remembered_port(memory)


def test_a_remembered_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    memory = tmp_path / "port"
    port = remembered_port(memory)
    with socket.create_server((HOST, port)):
        assert remembered_port(memory) != port


def test_a_port_to_avoid_is_not_chosen(tmp_path: Path) -> None:
    memory = tmp_path / "port"
    port = remembered_port(memory)
    assert remembered_port(memory, avoid={port}) != port


def test_broken_memory_is_forgotten(tmp_path: Path) -> None:
    memory = tmp_path / "port"
    memory.write_text("nonsense")
    assert remembered_port(memory) in RANGE


def test_a_wanted_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^Kafka cannot listen on {HOST}:{port}: the port is taken$"
        ):
            claim("Kafka", port, tmp_path / "port")
