"""Since when a message waits, whatever was tried since; and where a range was archived."""

from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0017"
locks = (
    "outbox_open, outbox_foreign and outbox_retired, their readers too, and so whoever sets a"
    " message aside, for a moment: a column is added to each, a trigger to outbox_foreign, and each"
    " open message is written once"
)


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0018_waiting_since.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
