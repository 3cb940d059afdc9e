"""What relays need that share the work of polling.

And the function of the trigger that wakes them.
"""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0004_relay_shards.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
