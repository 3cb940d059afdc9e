"""What a topic has to be like, beside the biz_types on it, and which biz_types are retired."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0006_biz_types.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
