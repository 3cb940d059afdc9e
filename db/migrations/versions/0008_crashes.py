"""Who owns a partition and what its owners died of, noted by partition and by message."""

from importlib import resources

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    file = resources.files("db.migrations").joinpath("versions", "0008_crashes.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
