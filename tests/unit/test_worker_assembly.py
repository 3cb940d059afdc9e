"""What a worker is made of.

Its login, settings that no environment variable changes, its schedule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from streams.broker import kafka
from streams.settings import load
from streams.worker.app import App, credentials
from streams.worker.retries.schedule import Schedule

SASL = {
    "STREAMS_BROKER__SASL_MECHANISM": "SCRAM-SHA-512",
    "STREAMS_BROKER__SASL_USERNAME": "app",
    "STREAMS_BROKER__SASL_PASSWORD": "secret-canary",
}


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_workers_log_in_as_relays_do(protocol: str) -> None:
    environ = {"BROKER_URL": "broker:9092", "STREAMS_BROKER__SECURITY_PROTOCOL": protocol}
    settings = load(environ=environ | (SASL if "SASL" in protocol else {}))
    relay, found = kafka.client(settings), credentials(settings)
    worker = credentials_to_aiokafka_auth(found)
    assert worker["security_protocol"] == relay["security.protocol"] == protocol
    assert worker.get("sasl_mechanism") == relay.get("sasl.mechanism")
    assert worker.get("sasl_plain_username") == relay.get("sasl.username")
    assert worker.get("sasl_plain_password") == relay.get("sasl.password")
    assert (worker.get("ssl_context") is not None) == protocol.endswith("SSL")
    assert "canary" not in repr(found)


def test_a_schedule_that_is_put_again_does_not_grow() -> None:
    schedule = Schedule()
    for _ in range(100):
        schedule.put(0, "a", 50.0)
    assert len(schedule._heap) == len(schedule) == 1
    assert schedule.take(60.0, 10) == [(0, "a")]
    schedule.put(0, "a", 50.0)
    assert schedule.take(60.0, 10) == [(0, "a")]


def values(app: App) -> dict[str, Any]:
    """Every setting of Faust as this app has it."""
    stored = vars(app.conf)
    return {name: stored.get(param.storage_name) for name, param in app.Settings.SETTINGS.items()}


@pytest.mark.parametrize("value", ["17", "0.0.0.0", "1.4.2", ""])
def test_no_environment_variable_of_fausts_changes_a_setting(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"web_bind": "127.0.0.1", "consumer_auto_offset_reset": "earliest"}
    plain, same = values(App("group", **options)), values(App("group", **options))
    random = {name for name in plain if plain[name] != same[name]}
    assert random <= {"reply_to"}
    for param in App.Settings.SETTINGS.values():
        for prefix in ("", "FAUST_", "F_"):
            if param.env_name:
                monkeypatch.setenv(prefix + param.env_name, value)
    given = values(App("group", **options))
    assert {name for name in given if given[name] != plain[name]} <= random


def test_a_worker_needs_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    App("group")._create_directories()
    assert list(tmp_path.iterdir()) == []
