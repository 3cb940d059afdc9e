"""How messages are named."""

from __future__ import annotations

import pytest

from streams.message_id import MessageId, foreign, name_of, ours, parts_of, read_name


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("17", 17, ("", 17)),
        ("seed:17", "seed:17", ("seed", 17)),
        ("seed:017", "seed:17", ("seed", 17)),
        ("a.b_c-1:9223372036854775807", "a.b_c-1:9223372036854775807", ("a.b_c-1", 2**63 - 1)),
        ("7:7", "7:7", ("7", 7)),
    ],
)
def test_a_name_says_whose_message_it_is(
    text: str, name: MessageId, parts: tuple[str, int]
) -> None:
    assert read_name(text) == name
    assert parts_of(name) == parts
    assert name_of(*parts) == name


@pytest.mark.parametrize(
    "text",
    ["", ":", "seed:", ":5", "seed:x", "seed:0", "0", "-1", str(2**63), f"seed:{2**63}", "a b:1"],
)
def test_a_choice_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_name(text)


def test_ours_and_others_are_told_apart_in_their_order() -> None:
    names: list[MessageId] = [3, "b:1", 1, "a:9"]
    assert ours(names) == [3, 1]
    assert foreign(names) == {"sources": ["b", "a"], "ids": [1, 9]}
