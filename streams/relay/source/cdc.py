"""Committed outbox rows, in commit order, streamed from a replication slot by psycopg's `pgconn`.

psycopg has no replication interface; START_REPLICATION, COPY BOTH and the feedback are libpq calls,
which it exposes. Reading and feedback are separate: who reads slowly still answers the server, so
it is never taken for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from struct import Struct
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import pq, sql

from streams.relay.postgres.connections import replication_connection
from streams.relay.postgres.floor import Floor
from streams.relay.postgres.slot import SlotBusy
from streams.relay.postgres.wal_floor import WalFloor
from streams.relay.source.pgoutput import Decoder
from streams.relay.source.rows import Rows

# What is read at once: small enough to keep the event loop and the broker fed, large enough to cost
# nothing per row.
ROWS, SIZE = 500, 1_000_000
FEEDBACK_SECONDS = 1.0
CONFIRM_SECONDS = 0.1
SILENCE_SECONDS = 10
GOODBYE_SECONDS = 2.0

_status = Struct("!cQQQqB")
_keepalive = Struct("!cQqB")
_XLOG_DATA, _KEEPALIVE = b"wk"
_PG_EPOCH = 946_684_800


class CdcSource:
    """One START_REPLICATION session: iterate for Rows, `confirm` what is with the broker.

    Raises SlotBusy when entered, psycopg.Error when the session cannot begin or ends.
    """

    def __init__(self, url: str, *, slot: str, publication: str, connect_timeout: int = 10) -> None:
        self._url = url
        self._slot = slot
        self._publication = publication
        self._timeout = connect_timeout
        self._decoder = Decoder()
        self._confirmed = 0
        self._received = 0
        self._told = time.monotonic()
        self._told_position = 0
        self._silent = 0
        self._ended = False

    async def __aenter__(self) -> Self:
        self._connection = await replication_connection(self._url, self._timeout)
        self._pgconn = self._connection.pgconn
        # pgconn.socket raises once the connection is lost, when the reader still has to be removed.
        self._socket = self._pgconn.socket
        try:
            await self._start()
        except BaseException:  # cancelled too: the slot is not kept from the next one
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._goodbye()
        finally:
            await self._connection.close()

    async def __aiter__(self) -> AsyncIterator[Rows]:
        while True:
            rows = self._read()
            if rows is not None:
                yield rows
                # Producers and heartbeats run between two reads, however much is waiting.
                await asyncio.sleep(0)
            elif not self._ended:
                await self._wait()
            else:
                raise psycopg.OperationalError(self._why_ended())

    def skip(self, published: Callable[[], int]) -> None:
        """From now on rows up to this id are not handed over.

        They were published, and put back by retention.
        """
        self._decoder.published = published

    def confirm(self, position: int | None) -> None:
        """Everything up to `position` is with the broker (None: nothing yet).

        The server hears of it soon.
        """
        if position is not None and position > self._confirmed:
            self._confirmed = position
        now = time.monotonic()
        due = CONFIRM_SECONDS if self._confirmed > self._told_position else FEEDBACK_SECONDS
        if now - self._told >= due:
            self._send_status(ask=self._silent > 0)

    def floor(self, confirmed: Callable[[], int | None]) -> Floor:
        """A floor that is proved by log positions."""
        return WalFloor(confirmed)

    def provable(self, confirmed: int | None, saved: int | None) -> int | None:
        """Only what was saved, so that another slot of its name is told from it."""
        return saved

    async def _start(self) -> None:
        options = "proto_version '1', publication_names {}"
        # A walsender refuses the extended protocol: everything is in the text.
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 (" + options + ")").format(
            sql.Identifier(self._slot), sql.Literal(sql.Identifier(self._publication).as_string())
        )
        self._pgconn.send_query(command.as_bytes())
        await self._flush()
        while self._pgconn.is_busy():
            await self._wait()
        result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise _refused(result)

    def _read(self) -> Rows | None:
        """What is there now, about ROWS or SIZE of it.

        It ends at the end of a transaction, where that is near. Whoever stops between the last row
        of a transaction and its COMMIT sends all of it again.
        """
        get, feed, decoder = self._pgconn.get_copy_data, self._decoder.feed, self._decoder
        asked = False
        while (decoder.count < ROWS and decoder.size < SIZE) or decoder.ends_soon(
            2 * ROWS, 2 * SIZE
        ):
            size, data = get(1)
            if size > 0:
                asked, self._silent = False, 0
                if data[0] == _XLOG_DATA:
                    feed(data[25:].tobytes())
                elif data[0] == _KEEPALIVE:
                    self._keepalive(data)
            elif size == 0 and not asked:
                self._pgconn.consume_input()
                asked = True
            else:
                self._ended = size < 0
                break
        return decoder.take()

    def _keepalive(self, data: memoryview) -> None:
        _, end, _, asks = _keepalive.unpack_from(data)
        self._received = max(self._received, end)
        # Rows before `end` were sent before this message, so the idle outbox holds back no other
        # table's WAL.
        self._decoder.idle(end)
        if asks:
            self._send_status()

    async def _wait(self) -> None:
        """Wait until the server sends something or a second has passed.

        A server that does not answer for long is gone.
        """
        if self._silent > SILENCE_SECONDS:
            raise psycopg.OperationalError("the server has gone silent")
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        # Only while waiting: a socket with unread data would keep the event loop spinning.
        loop.add_reader(self._socket, readable.set)
        try:
            async with asyncio.timeout(FEEDBACK_SECONDS):
                await readable.wait()
        except TimeoutError:
            self._silent += 1
        finally:
            loop.remove_reader(self._socket)
        self._pgconn.consume_input()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pgconn.flush():
            writable = asyncio.Event()
            loop.add_writer(self._socket, writable.set)
            try:
                await writable.wait()
            finally:
                loop.remove_writer(self._socket)

    def _send_status(self, *, ask: bool = False) -> None:
        confirmed = self._confirmed
        micros = int((time.time() - _PG_EPOCH) * 1_000_000)
        received = max(self._received, confirmed)
        self._pgconn.put_copy_data(_status.pack(b"r", received, confirmed, confirmed, micros, ask))
        # What the socket does not take now goes out with the next call.
        self._pgconn.flush()
        self._told, self._told_position = time.monotonic(), confirmed

    async def _goodbye(self) -> None:
        """Send the last confirmation and the end of COPY.

        When the server has answered, it has heard both.
        """
        if self._ended or self._pgconn.status != pq.ConnStatus.OK:
            return
        self._send_status()
        self._pgconn.put_copy_end()
        await self._flush()
        while True:
            size, _ = self._pgconn.get_copy_data(1)
            if size < 0:
                return
            if size == 0:
                await self._wait()

    def _why_ended(self) -> str:
        result = self._pgconn.get_result()
        return (
            result.error_message.decode(errors="replace").strip()
            if result
            else "the server ended the stream"
        )


def _refused(result: Any) -> Exception:
    if result is None:
        return psycopg.OperationalError("the server closed the connection")
    text = result.error_message.decode(errors="replace").strip()
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    if state == "55006":
        return SlotBusy(text)
    error: type[Exception] = psycopg.errors.lookup(state) if state else psycopg.OperationalError
    return error(text)
