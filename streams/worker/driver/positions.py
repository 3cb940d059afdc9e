"""Where each partition was positioned, what was delivered since, and up to where it may be committed.

Every positioning starts an epoch: what was fetched across one is never delivered, and acks of runs from before it count no
more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from faust.transport.consumer import ensure_TP
from faust.types import TP
from faust.types.tuples import Message
from mode.utils.futures import notify

from streams.worker.driver.fetch import FetchingConsumer
from streams.worker.driver.runs import Ledger, Run
from streams.worker.driver.suspicion import Owner


class PositionedConsumer(FetchingConsumer):
    """Faust's consumer, whose topics in `run_topics` have a ledger for each partition."""

    run_topics: frozenset[str] = frozenset()
    suspects: Owner | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledgers: defaultdict[TP, Ledger] = defaultdict(Ledger)
        self._epoch = 0
        self._expected: dict[TP, int] = {}
        self._confirmed: dict[TP, int] = {}
        self._sought: dict[TP, int] = {}
        self._dirty = False  # something fetched was not delivered: position anew before the next fetch

    def ack(self, message: Message) -> bool:
        """A run's transaction is committed; its ledger decides what that means for the offset."""
        run = message.value
        if not isinstance(run, Run):
            acked: bool = super().ack(message)
            return acked
        message.acked = run.acked = True
        self._unacked_messages.discard(message)
        self._acked[message.tp]  # lets Faust's commit look at this partition
        self._n_acked += 1
        notify(self._waiting_for_ack)
        return True

    async def perform_seek(self) -> None:
        """Position every partition at its committed offset; whatever was in flight will come again."""
        self._dirty = False  # before, not after: what is dropped while this waits may be from after the seek
        self._forget(self.assignment())
        await super().perform_seek()
        tps = [tp for tp in self.assignment() if tp.topic in self.run_topics]
        self._forget(tps)
        # Not Faust's own note of what is committed: it holds offsets whose commit failed.
        known = {tp: self._sought[tp] for tp in tps if (self._sought.get(tp) or -1) >= 0}
        unknown = [tp for tp in tps if tp not in known]
        for tp, offset in (await self.earliest_offsets(*unknown) if unknown else {}).items():
            # aiokafka leaves a partition without a committed offset where it was read to: that is no rewind.
            known[ensure_TP(tp)] = offset
            await self._seek(tp, offset)
        self._expected.update(known)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """The committed offset of every assigned partition, where it is positioned now."""
        sought: Mapping[TP, int] = await super().seek_to_committed()
        self._sought = {ensure_TP(tp): offset for tp, offset in sought.items()}
        return sought

    async def seek(self, partition: TP, offset: int) -> None:
        """Position one partition; whatever was in flight of it will come again."""
        self._forget([partition])
        await super().seek(partition, offset)
        self._expected[partition] = offset

    def resume_flow(self) -> None:
        """Fetch on.  Faust empties its agents' queues before that: what was delivered into them already comes again."""
        self._dirty |= any(not run.taken for ledger in self.ledgers.values() for run in ledger.in_flight)
        super().resume_flow()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """A rebalance takes these away: acks that still arrive for them count no more."""
        self._forget(revoked)
        await super().on_partitions_revoked(revoked)
        if self.suspects is not None:
            await self.suspects.give_up(self._places(revoked))

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """A rebalance gives these; Faust seeks to their committed offsets before the flow goes on."""
        self._forget(assigned)
        if self.suspects is not None:
            self.suspects.assigned(self._places(assigned))
        await super().on_partitions_assigned(assigned, generation_id)

    def confirmed(self, tp: TP) -> int | None:
        """The offset whose commit the broker confirmed since the partition was positioned."""
        return self._confirmed.get(ensure_TP(tp))

    def positions(self) -> dict[str, dict[int, dict[str, int | bool | None]]]:
        """Per topic and partition: offset delivered up to, persisted up to, committed up to, and whether it is held back."""
        found: dict[str, dict[int, dict[str, int | bool | None]]] = {}
        for tp in sorted(tp for tp in self.assignment() if tp.topic in self.run_topics):
            found.setdefault(tp.topic, {})[tp.partition] = {
                "delivered": self._expected.get(tp),
                "persisted": self.ledgers[tp].committable(),
                "committed": self._confirmed.get(tp),
                "in_flight": len(self.ledgers[tp].in_flight),
                "held_back": tp in self._buffered_partitions,
                "fetching": tp in self._get_active_partitions(),
            }
        return found

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic in self.run_topics:
            return self.ledgers[tp].committable()
        offset: int | None = super()._new_offset(tp)
        return offset

    def _should_commit(self, tp: TP, offset: int) -> bool:
        if tp.topic in self.run_topics:
            return offset > self._confirmed.get(tp, -1)
        wanted: bool = super()._should_commit(tp, offset)
        return wanted

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        # Faust notes an offset as committed even when the commit failed, and would never send it again.
        epoch = self._epoch
        done: bool = await super()._commit_offsets(offsets, start_new_transaction)
        if done and epoch == self._epoch:
            self._confirmed.update(offsets)
        return done

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # A run's message carries its last offset: what looks like a gap to Faust is the run.
        if tp.topic not in self.run_topics:
            await super()._add_gap(tp, offset_from, offset_to)

    def _places(self, tps: Iterable[TP]) -> list[tuple[str, int]]:
        return [(tp.topic, tp.partition) for tp in tps if tp.topic in self.run_topics]

    def _forget(self, tps: Iterable[TP]) -> None:
        self._epoch += 1
        for tp in tps:
            self.ledgers[tp].reset()
            self._expected.pop(tp, None)
            self._confirmed.pop(tp, None)
