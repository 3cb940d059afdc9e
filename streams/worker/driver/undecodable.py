"""Reading on where aiokafka gives up: at a record with a header name that is not UTF-8.

Such a fetch is made once more and decoded here, each byte of such a name as a question mark. All
of this runs in the consumer's thread, and what it leans on inside aiokafka is checked in
tests/contract/test_faust_contract.py.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.util import decode_varint
from faust.types import TP

logger = logging.getLogger(__name__)

BEFORE_LENGTH = struct.calcsize(">q")
BEFORE_BATCH = struct.calcsize(">qi")


async def read_on(consumer: Any) -> dict[TP, list[Any]]:
    """The next records of a partition that this consumer cannot go on decoding.

    It is an AIOKafkaConsumer, and has fetched them already.
    """
    for tp, result in list(consumer._fetcher._records.items()):
        if (
            type(result) is not FetchResult
            or result._partition_records is None
            or not result._assignment.active
        ):
            continue
        undecoded = result._partition_records._records_iterator
        if undecoded is None or undecoded.gi_frame is not None:
            continue
        position = result._assignment.state_value(tp).position
        fetched, aborted = await _fetch(consumer, tp, position)
        read = decoded(fetched, TP(tp.topic, tp.partition), aborted)
        records = [
            result._partition_records._consumer_record(tp, record)
            for record in read
            if record.offset >= position
        ]
        if records:
            return {TP(tp.topic, tp.partition): records}
    return {}


def decoded(fetched: bytes, tp: TP, aborted: Iterable[tuple[int, int]] = ()) -> Iterator[Any]:
    """The records of these batches of the partition `tp`; the last batch may be cut off.

    `aborted` are (producer, offset of the first record) of transactions that were aborted: none of
    theirs is a record.
    """
    start = 0
    begins = deque(sorted(aborted, key=itemgetter(1)))
    producers = set[int]()
    while start + BEFORE_BATCH <= len(fetched):
        end = start + BEFORE_BATCH + struct.unpack_from(">i", fetched, start + BEFORE_LENGTH)[0]
        if end > len(fetched):
            return
        batch = _DefaultRecordBatchPy(fetched[start:end])
        start = end
        while begins and begins[0][1] <= batch.base_offset:
            producers.add(begins.popleft()[0])
        if batch.is_control_batch:
            producers.discard(batch.producer_id)  # its transaction ends here, in whatever way
            continue
        if batch.is_transactional and batch.producer_id in producers:
            continue
        batch._maybe_uncompress()
        for _ in range(batch._num_records):
            yield _read(batch, tp)


def _read(batch: _DefaultRecordBatchPy, tp: TP) -> Any:
    start, buffer = batch._pos, batch._buffer
    try:
        return batch._read_msg()
    except UnicodeDecodeError:
        for name in _header_names(buffer, start):
            if not _readable(buffer[name]):
                buffer[name] = b"?" * (name.stop - name.start)
    record = batch._read_msg()
    where = {"topic": tp.topic, "partition": tp.partition, "offset": record.offset}
    logger.warning(
        "a record has a header name that is not UTF-8: read with question marks", extra=where
    )
    return record


def _header_names(buffer: bytearray, start: int) -> Iterator[slice]:
    """Where the header names of the record that begins at `start` are."""
    position = start
    for _ in ("length", "attributes", "timestamp delta", "offset delta"):
        _, position = decode_varint(buffer, position)
    for _ in ("key", "value"):
        size, position = decode_varint(buffer, position)
        position += max(size, 0)
    count, position = decode_varint(buffer, position)
    for _ in range(count):
        size, position = decode_varint(buffer, position)
        yield slice(position, position + size)
        size, position = decode_varint(buffer, position + size)
        position += max(size, 0)


def _readable(name: bytearray) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _fetch(consumer: Any, tp: Any, offset: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The batches from this offset on, and which transactions among them were aborted.

    Those are given as (producer, first offset).
    """
    fetcher, client = consumer._fetcher, consumer._client
    size = fetcher._max_partition_fetch_bytes
    wanted = [(tp.topic, [(tp.partition, offset, size)])]
    request = FetchRequest(0, 1, size, fetcher._isolation_level, wanted, rack_id="")
    response = await client.send(client.cluster.leader_for_partition(tp), request)
    [(_, [(_, code, _, *rest)])] = response.topics
    if code:
        raise for_code(code)
    # The 11th version names a replica between the aborted transactions and the batches.
    aborted = rest[2] if response.API_VERSION >= 11 else rest[-2]
    return rest[-1] or b"", aborted or []
