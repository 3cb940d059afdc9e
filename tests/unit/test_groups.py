"""The one TaskGroup: whoever catches its failure goes on as before, on every Python."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from streams.groups import TaskGroup

ROOT = Path(__file__).parents[2]


async def fails() -> None:
    await asyncio.sleep(0)
    raise OSError("away")


async def forever() -> None:
    await asyncio.Event().wait()


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_child_that_fails_leaves_no_cancellation_behind() -> None:
    with pytest.raises(ExceptionGroup):
        async with TaskGroup() as tasks:
            tasks.create_task(fails())
            tasks.create_task(forever())
    assert cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await forever()


async def test_a_child_that_fails_under_a_body_leaves_no_cancellation_behind() -> None:
    with pytest.raises(ExceptionGroup):
        async with TaskGroup() as tasks:
            tasks.create_task(fails())
            await forever()
    assert cancelling() == 0


async def test_a_group_that_is_cancelled_from_outside_is_cancelled() -> None:
    async def group() -> None:
        async with TaskGroup() as tasks:
            tasks.create_task(forever())

    task = asyncio.create_task(group())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_comes_with_a_failure_is_seen_afterwards() -> None:
    async def fails_at_its_end() -> None:
        try:
            await forever()
        finally:
            raise OSError("away")

    async def goes_on() -> None:
        with pytest.raises(ExceptionGroup):
            async with TaskGroup() as tasks:
                tasks.create_task(fails_at_its_end())
        await forever()

    task = asyncio.create_task(goes_on())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await task


def test_there_is_no_other_group() -> None:
    files = [file for folder in ("streams", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    bare = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in [*files, ROOT / "pytest_outbox_streams.py"]
        if file != ROOT / "streams" / "groups.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr == "TaskGroup")
        or (
            isinstance(node, ast.ImportFrom)
            and node.module != "streams.groups"
            and any(name.name == "TaskGroup" for name in node.names)
        )
    ]
    assert not bare, "use streams.groups.TaskGroup: " + ", ".join(bare)
