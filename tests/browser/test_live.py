"""A page that is left open shows what changes: headline, forms and the counts beside it too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web
from playwright.sync_api import Page, expect, sync_playwright

from streams.database import connect_sync
from streams.dev.ports import free_port
from streams.settings import load
from streams.web import aiohttp as aiohttp_pages
from tests.fixtures.programs import program
from tests.fixtures.scene import HELD, RETRIED, fill

DIES = """
UPDATE outbox_state SET status = 'dead', next_retry_at = NULL
WHERE key = %(key)s AND status = 'retrying' RETURNING outbox_id
"""
PREVIEW = """
INSERT INTO outbox_operations (act, who, through, hash, planned) VALUES ('replay', 'amy', 1, 'x', 1)
RETURNING id
"""


@pytest.fixture
def pages(database: str) -> Iterator[str]:
    """Where the pages of the scene are, without anybody who works."""
    fill(database)
    port, loop = free_port(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    application, settings = web.Application(), load(environ={"DATABASE_URL": database})
    application.add_subapp("/outbox/", aiohttp_pages.pages(settings))
    runner = web.AppRunner(application, shutdown_timeout=1)

    async def serve() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    asyncio.run_coroutine_threadsafe(serve(), loop).result(20)
    yield f"http://127.0.0.1:{port}/outbox/"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def page(pages: str) -> Iterator[Page]:
    """A page of a browser, after the server."""
    path = program("chromium", "chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def run(database: str, statement: str, **parameters: str) -> list[tuple[int, ...]]:
    """One statement, as a worker or an operator somewhere else would."""
    with connect_sync(database) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def test_what_changes_is_shown_without_a_reload(database: str, pages: str, page: Page) -> None:
    headline, replay = page.locator("h1"), page.get_by_role("button", name="Replay it")
    waits = "SELECT outbox_id FROM outbox_state WHERE key = %(key)s AND status = 'retrying'"
    [(message,)] = run(database, waits, key=RETRIED)
    page.goto(f"{pages}messages/{message}")
    page.evaluate("window.loaded = 'once'")
    expect(headline).to_contain_text("retrying")
    expect(replay).to_have_count(0)
    badges = page.locator(".rail [data-count]")
    [(dead, held)] = run(
        database, "SELECT count(*), count(*) FILTER (WHERE held) FROM outbox_dead_letters"
    )
    expect(badges).to_have_text([str(dead), str(held)])

    assert run(database, DIES, key=RETRIED) == [(message,)]
    expect(headline).to_contain_text("dead", timeout=10_000)
    expect(replay).to_be_visible(timeout=10_000)
    expect(badges).to_have_text([str(dead + 1), str(held + 1)], timeout=10_000)
    run(database, "UPDATE outbox_state SET status = 'replaying' WHERE key = %(key)s", key=RETRIED)
    expect(headline).to_contain_text("replaying", timeout=10_000)
    expect(replay).to_have_count(0, timeout=10_000)
    expect(badges).to_have_text([str(dead), str(held)], timeout=10_000)
    assert page.evaluate("window.loaded") == "once"


def test_when_the_figures_are_of_is_said_with_the_time_here(pages: str, page: Page) -> None:
    page.goto(f"{pages}workers/")
    as_of = page.locator("#as-of")
    at = as_of.get_attribute("datetime")
    page.wait_for_function("at => document.getElementById('as-of').dateTime !== at", arg=at)
    page.wait_for_function(
        "() => { const time = document.getElementById('as-of');"
        " return time.title.startsWith(time.dateTime.slice(0, 19).replace('T', ' ')); }",
        timeout=10_000,
    )


def test_a_conversation_can_be_released_once_it_is_held(
    database: str, pages: str, page: Page
) -> None:
    release = page.get_by_role("button", name="Release the conversation")
    page.goto(f"{pages}conversation?topic=chat-history&key={RETRIED}")
    expect(release).to_have_count(0)
    run(database, DIES, key=RETRIED)
    expect(release).to_be_visible(timeout=10_000)
    page.goto(f"{pages}conversation?topic=chat-history&key={HELD}")
    expect(release).to_be_visible()
    run(database, "DELETE FROM outbox_state WHERE key = %(key)s", key=HELD)
    expect(release).to_have_count(0, timeout=10_000)


def test_an_operation_that_ends_by_itself_says_so_in_its_headline(
    database: str, pages: str, page: Page
) -> None:
    [(operation,)] = run(database, PREVIEW)
    page.goto(f"{pages}operations/{operation}")
    expect(page.locator("h1")).to_contain_text("Preview of a replay")
    run(database, "UPDATE outbox_operations SET state = 'stopped', reason = 'it was told to'")
    expect(page.locator("h1")).to_contain_text(f"Operation {operation} stopped", timeout=10_000)
