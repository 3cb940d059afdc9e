"""Who owns a partition and what its owners died of, noted by partition and by message."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0008_crashes.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
