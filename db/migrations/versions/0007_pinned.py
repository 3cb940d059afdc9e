"""Our functions mean our tables, whatever search_path they are called with."""

from importlib import resources

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(
        resources.files("db.migrations").joinpath("versions", "0007_pinned.sql").read_text("utf-8")
    )
