"""The tables of chat history, with the agent that writes them.

They are taken over where an earlier version has made them.
"""

from pathlib import Path

from alembic import op
from sqlalchemy import inspect

from streams.errors import UsageError

revision = "0001"
down_revision = None

COLUMNS = {
    "chat_histories": {
        "id",
        "source",
        "outbox_id",
        "user_id",
        "chat_id",
        "role",
        "message_content",
    },
    "agent_chats": {"user_id", "chat_id", "message_count", "last_message_at"},
}


def upgrade() -> None:
    inspector = inspect(op.get_bind())
    there = [table for table in COLUMNS if inspector.has_table(table)]
    for table in there:
        if (
            not COLUMNS[table] <= {column["name"] for column in inspector.get_columns(table)}
            or len(there) < 2
        ):
            raise UsageError(
                f"table {table} is there and is not ours: leave streams.agents out of `agents` in"
                " faust.yml, or give the outbox a schema of its own"
            )
    if there:
        op.execute("ALTER TABLE agent_chats SET (fillfactor = 50)")
        return
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(Path(__file__).with_name("0001_chat_history.sql").read_text("utf-8"))
