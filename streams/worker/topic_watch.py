"""A worker ends when its topics or its cluster are not those that it began with any more.

Faust and aiokafka believe for ever what they learned at their start: positions, partition counts,
the addresses of brokers. A process that starts again learns again, and makes what is missing. Two
looks have to agree, as one broker may not know yet what the others do; until then the worker is not
ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from types import MappingProxyType

from streams.broker import topics
from streams.broker.topics import Cluster
from streams.errors import ServiceUnreachable
from streams.worker.fail import fail_stop

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0


class TopicWatch:
    """Knows the worker's topics since `begin`; a thread of its own looks at Kafka, which blocks.

    `ids` are Kafka's ids of the topics, empty until then; `change` is what the last look found,
    None while all is as it was.
    """

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self.ids = MappingProxyType(self._ids)
        self.change: str | None = None

    def begin(
        self, survey: topics.Survey, cluster: Cluster, lost: Callable[[Collection[str]], bool]
    ) -> None:
        """Begin with these topics.

        `lost` tells whether Faust's consumer has lost brokers that are at these addresses now.
        """
        self._survey, self._cluster, self._lost = survey, cluster, lost
        self._ids.update((name, topic.id) for name, topic in cluster.topics.items())
        threading.Thread(target=self._run, name="topics", daemon=True).start()

    def look(self) -> None:
        """Compare once; the process ends when the look before saw a change, too."""
        before = self.change
        try:
            now = self._survey.look(self._cluster.topics)
        except ServiceUnreachable:
            return  # an outage: that is told and waited out elsewhere
        self.change = topics.change(self._cluster, now)
        if self.change is None and self._lost(now.brokers):
            self.change = f"Kafka answers at other addresses: {', '.join(sorted(now.brokers))}"
        if self.change and before:
            fail_stop(
                "Kafka is not as it was and the worker stops, to be started again",
                reason=self.change,
            )

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                self.look()
            except Exception:  # whatever a client comes up with: who watches goes on
                logger.exception("topics cannot be compared")
