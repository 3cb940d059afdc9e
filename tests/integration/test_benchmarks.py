"""The benchmarks measure what the worker does: their statements are its own, and still work."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from benchmarks.persist import Record, statements


def test_the_contestants_statements_claim_and_persist_a_batch(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload)"
            " SELECT 'chat_history_persist', 'chat-history', 'c' || n % 7, json_build_object("
            "'user_id', n % 7, 'conversation_id', 'c' || n % 7, 'role', 'user', 'message', 'hi')"
            " FROM generate_series(1, 50) AS n"
        )
        rows = connection.execute(
            "SELECT id, key, payload::text, (extract(epoch FROM created_at) * 1000)::bigint"
            " FROM outbox ORDER BY id"
        ).fetchall()
        records = [
            Record(outbox_id, offset, key, payload.encode(), created)
            for offset, (outbox_id, key, payload, created) in enumerate(rows)
        ]
        for statement, parameters in statements("chat-history", 0, records):
            connection.execute(statement, parameters)
        connection.commit()
        [(histories, consumed)] = connection.execute(
            "SELECT (SELECT count(*) FROM chat_histories),"
            " (SELECT count(*) FROM outbox_state WHERE status = 'consumed')"
        ).fetchall()
    assert (histories, consumed) == (50, 50)


@pytest.mark.long
def test_the_whole_contest_runs() -> None:
    command = [sys.executable, "-m", "benchmarks", "--rows", "5000", "--rounds", "1"]
    contest = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert contest.returncode == 0, contest.stdout[-3000:] + contest.stderr[-3000:]
    assert "bare" in contest.stdout
