"""Behind a pooler: in session mode everything works, in transaction mode enqueue does.

The rest says why not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.database import async_engine, connect, connect_sync, sessions, sync_engine
from streams.database.sessions import REQUIRED
from streams.errors import UsageError
from streams.relay.postgres.checks import check_database
from streams.settings import load
from tests.fixtures import pooler

Behind = Callable[[str, pooler.Mode], AbstractContextManager[str]]
OURS = list(REQUIRED)
SHOW = "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS asked (name)"
MEND = "set pool_mode = session"


@pytest.fixture(params=["stand-in", *(["pgbouncer"] if pooler.program() else [])])
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Behind]:
    """Puts a pooler before a database: the stand-in, and the real one where it is installed."""

    @contextmanager
    def put(url: str, mode: pooler.Mode) -> Iterator[str]:
        before = (
            pooler.stand_in(url, mode)
            if request.param == "stand-in"
            else pooler.pgbouncer(url, mode, tmp_path)
        )
        with before as pooled:
            yield pooled

    yield put
    gc.collect()


async def test_a_session_of_a_pooler_is_ours(database: str, behind: Behind) -> None:
    with behind(database, "session") as url:
        for _ in range(2):  # a session that another client has used
            async with await connect(url) as connection:
                shown = await (await connection.execute(SHOW, [OURS])).fetchall()
                assert dict(shown) == REQUIRED
            engine = async_engine(url, session={"lock_timeout": "3s"}, poolclass=NullPool)
            async with engine.connect() as other, engine.connect() as another:
                for each in (other, another):
                    assert (await each.exec_driver_sql("SHOW lock_timeout")).scalar_one() == "3s"
            with sync_engine(url, poolclass=NullPool).connect() as plain:
                assert dict(plain.exec_driver_sql(SHOW, (OURS,)).all()) == REQUIRED
        connect_sync(url).close()


async def test_options_of_a_url_reach_a_session_of_a_pooler(database: str, behind: Behind) -> None:
    with (
        behind(database, "session") as url,
        connect_sync(f"{url}?options=-csearch_path%3Dapp") as connection,
    ):
        assert connection.execute("SHOW search_path").fetchone() == ("app, pg_temp",)


async def test_a_shared_session_is_refused_and_left_as_it_was(
    database: str, behind: Behind
) -> None:
    with behind(database, "transaction") as url:
        for _ in range(2):
            with pytest.raises(sessions.SessionRefused, match=MEND):
                await connect(url)
            with pytest.raises(Exception, match=MEND):
                sync_engine(url, poolclass=NullPool).connect()
            with pytest.raises(UsageError, match=MEND):
                check_database(load(environ={"DATABASE_URL": url}))
        with psycopg.connect(url, prepare_threshold=None) as business:
            assert business.execute("SHOW row_security").fetchone() == ("on",)


async def test_a_business_enqueues_through_a_pool_in_transaction_mode(
    database: str, behind: Behind
) -> None:
    """As docs/enqueue.md has it: without prepared statements, which other sessions do not know."""
    message = ChatHistoryPersist(
        user_id=7, conversation_id="c1", role="user", message="für Ärger €"
    )
    settings = load(environ={"DATABASE_URL": database})
    outbox.start(settings)
    try:
        with behind(database, "transaction") as url:
            there = url.replace("postgresql:", "postgresql+psycopg:")
            engine = create_engine(there, connect_args={"prepare_threshold": None})
            several = create_async_engine(there, connect_args={"prepare_threshold": None})
            for _ in range(8):
                with Session(engine) as session, session.begin():
                    outbox.enqueue_sync(session, message)
                async with several.begin() as connection:
                    await outbox.enqueue(connection, [message, message])
            engine.dispose()
            await several.dispose()
    finally:
        outbox.close()
    with sync_engine(database, poolclass=NullPool).connect() as connection:
        rows = connection.execute(text("SELECT payload ->> 'message' FROM outbox")).scalars().all()
    assert (len(rows), set(rows)) == (24, {"für Ärger €"})
