"""The demo's conversations are real, in many languages, and take turns."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from streams.dev.conversations import chat, conversations, topics


def test_the_corpus_has_thousands_of_conversations_in_more_than_twenty_languages() -> None:
    known = {topic: conversations(topic) for topic in topics()}
    assert len({topic.parent.name for topic, found in known.items() if found}) > 20
    assert sum(map(len, known.values())) > 5000


@pytest.mark.parametrize("seed", range(20))
def test_a_chat_chains_conversations_and_user_and_assistant_take_turns(seed: int) -> None:
    turns = list(chat(random.Random(seed)))
    assert len(turns) >= 4
    assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert all(turn.message.strip() for turn in turns)


def test_conversations_that_are_broken_in_a_file_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "broken.yml"
    file.write_text(
        "conversations:\n- [Hello, Hi]\n- [Alone]\n- [Sure?, yes]\n- text\n- [Blank, ' ']\n- []\n"
    )
    # YAML reads a bare yes as a boolean: nobody said that.
    assert conversations(file) == (("Hello", "Hi"),)


@pytest.mark.parametrize("text", ["{", "", "conversations: none\n", "- a list\n"])
def test_a_broken_file_has_no_conversations(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yml"
    file.write_text(text)
    assert conversations(file) == ()
