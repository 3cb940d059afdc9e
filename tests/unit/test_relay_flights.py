"""What is safe to confirm: the position of the longest acknowledged prefix.

Never that of what came after a gap.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from streams.relay.sink.in_flight import InFlight


def test_nothing_is_confirmed_before_all_rows_of_a_read_landed() -> None:
    flights = InFlight()
    flight = flights.start(2, 100, 10)
    flight.acknowledged(None, None)
    assert [flights.position, flights.rows] == [None, 2]
    flight.acknowledged(None, None)
    assert [flights.position, flights.rows, flights.size] == [10, 0, 0]


def test_a_later_read_waits_for_an_earlier_one() -> None:
    flights = InFlight()
    first, second = flights.start(1, 1, 10), flights.start(1, 1, 20)
    second.acknowledged(None, None)
    assert (flights.position, flights.rows) == (None, 1)
    first.acknowledged(None, None)
    assert flights.position == 20


def test_the_middle_of_a_transaction_confirms_nothing() -> None:
    flights = InFlight()
    first, second = flights.start(1, 1, None), flights.start(1, 1, 20)
    first.acknowledged(None, None)
    assert flights.position is None
    second.acknowledged(None, None)
    assert flights.position == 20


def test_an_idle_position_waits_for_the_rows_before_it() -> None:
    flights = InFlight()
    flight = flights.start(1, 1, 10)
    flights.start(0, 0, 30)
    assert flights.position is None
    flight.acknowledged(None, None)
    assert flights.position == 30


def test_a_refused_row_is_never_passed() -> None:
    flights = InFlight()
    first, second = flights.start(1, 1, 10), flights.start(1, 1, 20)
    first.acknowledged("refused", None)
    second.acknowledged(None, None)
    assert (flights.position, flights.failure) == (None, "refused")


@given(st.lists(st.integers(0, 4), max_size=30), st.randoms(use_true_random=False))
def test_any_order_of_acknowledgements_confirms_exactly_the_prefix(
    sizes: Sequence[int], random: object
) -> None:
    flights = InFlight()
    started = [flights.start(size, size, number) for number, size in enumerate(sizes)]
    pending = [number for number, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(pending)  # type: ignore[attr-defined]
    left = list(sizes)
    for number in pending:
        started[number].acknowledged(None, None)
        left[number] -= 1
        prefix = next((at for at, count in enumerate(left) if count), len(left))
        assert flights.position == (prefix - 1 if prefix else None)
    assert flights.rows == flights.size == 0
