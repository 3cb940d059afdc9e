"""One row per open message beside its state.

Asking what waits costs the same however old a deployment is.
"""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"
locks = (
    "writers of outbox_state: it waits for the runs that are under way, and new ones wait until the"
    " open messages are copied"
)


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0015_open.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
