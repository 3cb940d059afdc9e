"""Figures, processes, lag, dead letters and operations: what the operators' pages read."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"
locks = (
    "writers of outbox_state and outbox_foreign, and everybody on outbox_stats, which is made anew,"
    " for as long as the dead messages are read"
)


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0013_figures.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
