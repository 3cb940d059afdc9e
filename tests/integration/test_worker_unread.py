"""Records that were fetched and reached nobody.

Nothing comes behind them that would show the hole.
"""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Eventually, World
from tests.fixtures.notes import Notes

# The next fetch that finds something is lost, as one was that a rebalance had given up.
LOSE = """
from pathlib import Path
import streams.worker.driver.unread
from faust.agents import current_agent

streams.worker.driver.unread.UNREAD = 1.0

def lose_next_fetch():
    thread = current_agent().app.consumer._thread
    fetch = thread.getmany

    async def losing(*how, **options):
        Path(__file__).with_name("losing").touch()
        found = await fetch(*how, **options)
        if found:
            thread.getmany = fetch
            return {}
        return found

    thread.getmany = losing
"""


async def test_records_that_were_fetched_and_lost_are_read_again(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path, partitions=1)
    module = tmp_path / "notebook" / "__init__.py"
    source = module.read_text().replace(
        'case "hang":', 'case "lose":\n                lose_next_fetch()\n            case "hang":'
    )
    module.write_text(LOSE + source)
    worker = world.worker()
    ids = notes.send("a", "lose: the next fetch")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    await eventually((tmp_path / "notebook" / "losing").exists)
    lost = notes.send("a", "lost")
    await eventually(lambda: notes.all(lost, "consumed"), 30)
    assert notes.saved("a") == ["lose: the next fetch", "lost"]
    assert "records lost between broker and worker are read again" in worker.log.read_text()
