"""A message whose key is not its payload's key field is refused where it enters."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0011_key_field.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
