"""How a run is given to its handlers: as a whole, in pieces or one by one; in which batches."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, auto

from streams.worker.delivery import Delivery


class Strategy(IntEnum):
    """How a run is worked, from the fastest way to the most careful one."""

    WHOLE = auto()  # all at once: an error fails the run
    BISECT = auto()  # in savepoints, to find who is guilty
    SINGLE = auto()  # in savepoints too, each message on its own


def batches(deliveries: Sequence[Delivery]) -> list[tuple[str, list[Delivery]]]:
    """One batch for each biz_type, in rounds.

    Wherever the biz_type changes within one conversation another round begins.
    """
    if len({delivery.biz_type for delivery in deliveries}) == 1:
        return [(deliveries[0].biz_type, list(deliveries))]
    rounds: list[tuple[str, list[Delivery]]] = []
    current: dict[str, list[Delivery]] = {}
    biz_type_of: dict[str, str] = {}
    for delivery in deliveries:
        biz_type = delivery.biz_type
        if biz_type_of.setdefault(delivery.key, biz_type) != biz_type:
            rounds += current.items()
            current, biz_type_of = {}, {delivery.key: biz_type}
        current.setdefault(biz_type, []).append(delivery)
    return rounds + list(current.items())
