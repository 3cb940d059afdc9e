"""Fates of messages that another system's producer sends in envelopes."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(Path(__file__).with_name("0003_foreign.sql").read_text("utf-8"))
