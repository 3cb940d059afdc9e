"""Our functions mean our tables, whatever search_path they are called with."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(Path(__file__).with_name("0007_pinned.sql").read_text("utf-8"))
