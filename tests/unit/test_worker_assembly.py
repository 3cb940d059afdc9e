"""What a worker is made of: it logs in to Kafka as the relay does, and a schedule does not grow by being compared."""

from __future__ import annotations

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from streams import kafka
from streams.settings import load
from streams.worker.assembly import credentials
from streams.worker.schedule import Schedule

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
