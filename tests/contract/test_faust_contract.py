"""What the worker leans on inside Faust, mode and aiokafka.

A new version that changes it fails here, by name. After reading what changed, and running the
acceptance tests against it: `python -m tests.contract.test_faust_contract` prints the new
fingerprints.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiokafka.client
import faust
import faust.streams
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v5
from aiokafka.record.default_records import _DefaultRecordBatchPy
from faust.app.base import App
from faust.tables.base import Collection
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import ConsumerMessage, Message

import streams.worker.driver.transport  # noqa: F401

VERSIONS = {"faust-streaming": "0.15.3", "mode-streaming": "0.7.1", "aiokafka": "0.14.0"}

# What our driver overrides, calls or depends on the order of.
RELIED_ON: tuple[Callable[..., Any], ...] = (
    Consumer.__init__,
    Consumer.getmany,
    Consumer._wait_next_records,
    Consumer._drain_messages,
    Consumer._get_active_partitions,
    Consumer.ack,
    Consumer.on_buffer_full,
    Consumer.on_buffer_drop,
    Consumer.perform_seek,
    Consumer.seek,
    ThreadDelegateConsumer.seek_to_committed,
    Consumer.stop_flow,
    Consumer.resume_flow,
    Consumer.on_partitions_revoked,
    Consumer.on_partitions_assigned,
    Consumer.force_commit,
    Consumer._commit_tps,
    Consumer._filter_tps_with_pending_acks,
    Consumer._filter_committable_offsets,
    Consumer._should_commit,
    Consumer._new_offset,
    Consumer._add_gap,
    Consumer._commit_offsets,
    Consumer.on_stop,
    ThreadDelegateConsumer._getmany,
    ThreadDelegateConsumer._seek,
    ThreadDelegateConsumer.seek_wait,
    driver.Consumer._to_message,
    driver.ConsumerRebalanceListener.on_partitions_revoked,
    driver.ConsumerRebalanceListener.on_partitions_assigned,
    driver.Consumer._new_consumer_thread,
    driver.AIOKafkaConsumerThread._create_worker_consumer,
    driver.AIOKafkaConsumerThread.seek_to_committed,
    driver.AIOKafkaConsumerThread.getmany,
    driver.AIOKafkaConsumerThread._fetch_records,
    driver.AIOKafkaConsumerThread._commit,
    driver.Transport.__init__,
    driver.Producer.flush,
    GroupCoordinator._heartbeat_routine,
    GroupCoordinator.coordinator_dead,
    GroupCoordinator.ensure_coordinator_known,
    AIOKafkaConsumer.start,
    AIOKafkaConsumer.commit,
    AIOKafkaConsumer.seek_to_committed,
    AIOKafkaClient._metadata_update,
    MetadataRequest.build,
    GroupCoordinator.fetch_committed_offsets,
    TopicPartitionState.__init__,
    Fetcher._get_actions_per_node,
    Fetcher._fetch_requests_routine,
    Fetcher.fetched_records,
    FetchResult.getall,
    FetchResult.check_assignment,
    PartitionRecords._unpack_records,
    PartitionRecords._consumer_record,
    _DefaultRecordBatchPy._read_msg,
    _DefaultRecordBatchPy._maybe_uncompress,
    FetchRequest.__init__,
    App._on_partitions_revoked,
    App._on_partitions_assigned,
    App.worker_init_post_autodiscover,
    App._stop_consumer,
    Recovery._resume_streams,
    Recovery._seek_offsets,
    Recovery.on_recovery_completed,
    Collection._send_changelog,
    Collection.partition_for_key,
    Message.ack,
    ConsumerMessage.on_final_ack,
)

FINGERPRINTS: dict[str, str] = {
    "faust.transport.consumer.Consumer.__init__": "302410d59e6972d1",
    "faust.transport.consumer.Consumer.getmany": "4b168d84882a70d6",
    "faust.transport.consumer.Consumer._wait_next_records": "6218e1969a636b3f",
    "faust.transport.consumer.Consumer._drain_messages": "44a2500309e83c63",
    "faust.transport.consumer.Consumer._get_active_partitions": "b24897f3c7afdb5d",
    "faust.transport.consumer.Consumer.ack": "5fcf41cf45153475",
    "faust.transport.consumer.Consumer.on_buffer_full": "c8961679e0bcdce5",
    "faust.transport.consumer.Consumer.on_buffer_drop": "4b57e8a418d5ad9c",
    "faust.transport.consumer.Consumer.perform_seek": "0e8c130ff4b0afd8",
    "faust.transport.consumer.Consumer.seek": "b86a9fe05f956b30",
    "faust.transport.consumer.ThreadDelegateConsumer.seek_to_committed": "f1d483b861b0328b",
    "faust.transport.consumer.Consumer.stop_flow": "cf7e875a2b0d40e8",
    "faust.transport.consumer.Consumer.resume_flow": "db59630f25b5819b",
    "faust.transport.consumer.Consumer.on_partitions_revoked": "d04b7ae72c6fc206",
    "faust.transport.consumer.Consumer.on_partitions_assigned": "29ce96596f05a18c",
    "faust.transport.consumer.Consumer.force_commit": "cc094614d22c70fb",
    "faust.transport.consumer.Consumer._commit_tps": "a20e230b05ae8b15",
    "faust.transport.consumer.Consumer._filter_tps_with_pending_acks": "f6f9239774234e7e",
    "faust.transport.consumer.Consumer._filter_committable_offsets": "dc5e9baf5d994485",
    "faust.transport.consumer.Consumer._should_commit": "5ce941793947ad42",
    "faust.transport.consumer.Consumer._new_offset": "1d2c7ea89a7ad4f1",
    "faust.transport.consumer.Consumer._add_gap": "4df2573ded7c1c2c",
    "faust.transport.consumer.Consumer._commit_offsets": "1a69799041188441",
    "faust.transport.consumer.Consumer.on_stop": "45b1d2210ce2b526",
    "faust.transport.consumer.ThreadDelegateConsumer._getmany": "f9d47aa9010b5ff2",
    "faust.transport.consumer.ThreadDelegateConsumer._seek": "4f95c631420410a5",
    "faust.transport.consumer.ThreadDelegateConsumer.seek_wait": "e9db5bbc4ceb2543",
    "faust.transport.drivers.aiokafka.Consumer._to_message": "7c24f6511b2fcef7",
    "faust.transport.drivers.aiokafka.ConsumerRebalanceListener.on_partitions_revoked": "348c3aec879faf80",
    "faust.transport.drivers.aiokafka.ConsumerRebalanceListener.on_partitions_assigned": "1c1f8406ad3698a6",
    "faust.transport.drivers.aiokafka.Consumer._new_consumer_thread": "0870ec53dea75083",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._create_worker_consumer": "c2701bfc3e6f6cad",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread.seek_to_committed": "775ab0adc4b052ab",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread.getmany": "26fc5fc9f3b667e1",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._fetch_records": "39a2c6c79fc1455a",
    "faust.transport.drivers.aiokafka.AIOKafkaConsumerThread._commit": "932852ce7a23f658",
    "faust.transport.drivers.aiokafka.Producer.flush": "36d0cb3615f65b01",
    "faust.transport.drivers.aiokafka.Transport.__init__": "a06006f6ae8ed716",
    "aiokafka.consumer.group_coordinator.GroupCoordinator._heartbeat_routine": "61d01028952239d0",
    "aiokafka.consumer.group_coordinator.GroupCoordinator.coordinator_dead": "ba1eda0254af8dfe",
    "aiokafka.consumer.group_coordinator.GroupCoordinator.ensure_coordinator_known": "4dfb9ccd877aba5d",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.start": "2f1ba70443327538",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.commit": "79b057d88220e5a2",
    "aiokafka.consumer.consumer.AIOKafkaConsumer.seek_to_committed": "f6cd85c8b70a4ccf",
    "aiokafka.client.AIOKafkaClient._metadata_update": "06dc51ed3e0d38b8",
    "aiokafka.protocol.metadata.MetadataRequest.build": "e355bb17a7c0f2a8",
    "aiokafka.consumer.group_coordinator.GroupCoordinator.fetch_committed_offsets": "6c049c7379165952",
    "aiokafka.consumer.subscription_state.TopicPartitionState.__init__": "f0b391da1b87af04",
    "aiokafka.consumer.fetcher.Fetcher._get_actions_per_node": "1dab2cf937d165d0",
    "aiokafka.consumer.fetcher.Fetcher._fetch_requests_routine": "2a8ec5932644c9b0",
    "aiokafka.consumer.fetcher.Fetcher.fetched_records": "be4348896b9b66af",
    "aiokafka.consumer.fetcher.FetchResult.getall": "3e717e30de5068d5",
    "aiokafka.consumer.fetcher.FetchResult.check_assignment": "b5340df67e3f330f",
    "aiokafka.consumer.fetcher.PartitionRecords._unpack_records": "b803e6d46480732c",
    "aiokafka.consumer.fetcher.PartitionRecords._consumer_record": "e668541600b047ab",
    "aiokafka.record.default_records._DefaultRecordBatchPy._read_msg": "0997ab7a58505c93",
    "aiokafka.record.default_records._DefaultRecordBatchPy._maybe_uncompress": "c9d0dc2bed50cc86",
    "aiokafka.protocol.fetch.FetchRequest.__init__": "f31b6b74cc94dae4",
    "faust.app.base.App._on_partitions_revoked": "d5c895bbe57dc73a",
    "faust.app.base.App._on_partitions_assigned": "de932b7927db85b3",
    "faust.app.base.App.worker_init_post_autodiscover": "f69e34079ab8a734",
    "faust.app.base.App._stop_consumer": "55854a5de12c3f52",
    "faust.tables.recovery.Recovery._resume_streams": "d986a6710c1aca98",
    "faust.tables.recovery.Recovery._seek_offsets": "19598ca63d94d250",
    "faust.tables.recovery.Recovery.on_recovery_completed": "6ef567acf072e46d",
    "faust.tables.base.Collection._send_changelog": "ffe705dc73c1e67c",
    "faust.tables.base.Collection.partition_for_key": "3b2291811b8dd791",
    "faust.types.tuples.Message.ack": "4751b72c4ed84153",
    "faust.types.tuples.ConsumerMessage.on_final_ack": "45d670b6a8ac4bd0",
    "faust._cython.streams": "0041622f4a251188",
}


def fingerprints() -> dict[str, str]:
    """Of each piece relied on: a digest of its source.

    Of Cython's stream loop: of the source it was compiled from.
    """
    digests = {
        f"{piece.__module__}.{piece.__qualname__}": _digest(_source(piece)) for piece in RELIED_ON
    }
    compiled = Path(faust.__file__).with_name("_cython") / "streams.pyx"
    return {**digests, "faust._cython.streams": _digest(compiled.read_text())}


def changed() -> list[str]:
    """The pieces whose source is not what the driver was written against."""
    digests = fingerprints()
    return sorted(
        name
        for name in digests.keys() | FINGERPRINTS.keys()
        if digests.get(name) != FINGERPRINTS.get(name)
    )


def _source(piece: Callable[..., Any]) -> str:
    return inspect.getsource(inspect.unwrap(piece))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_versions_are_the_pinned_ones() -> None:
    assert {name: importlib.metadata.version(name) for name in VERSIONS} == VERSIONS


def test_nothing_relied_on_has_changed() -> None:
    assert changed() == []


@pytest.mark.parametrize("name", ["_new_offset", "ack", "perform_seek", "_should_commit"])
def test_a_change_is_found_and_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(Consumer, name)

    def other(self: Any, *args: Any) -> Any:
        return original(self, *args)

    other.__module__, other.__qualname__ = original.__module__, original.__qualname__
    pieces = tuple(other if piece is original else piece for piece in RELIED_ON)
    monkeypatch.setattr("tests.contract.test_faust_contract.RELIED_ON", pieces)
    assert changed() == [f"faust.transport.consumer.Consumer.{name}"]


def test_a_table_write_takes_its_partition_from_a_context_variable() -> None:
    assert isinstance(faust.streams._current_event, ContextVar)


def test_no_request_of_a_worker_makes_a_topic() -> None:
    # The driver, imported above, sees to that.
    request: Any = aiokafka.client.MetadataRequest
    assert request(["a"]).build(MetadataRequest_v5).get_item("allow_auto_topic_creation") is False


def test_the_last_ack_of_a_message_reaches_the_consumer() -> None:
    acked: list[Message] = []

    class Spy:
        def ack(self, message: Message) -> bool:
            acked.append(message)
            return True

    spy: Any = Spy()
    message = ConsumerMessage("t", 0, 5, 0.0, 0, None, None, b"", None)
    message.incref(2)
    assert not message.ack(spy)
    assert message.ack(spy)
    assert acked == [message]


if __name__ == "__main__":
    for name, digest in fingerprints().items():
        print(f'    "{name}": "{digest}",')  # noqa: T201
