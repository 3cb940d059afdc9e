"""Which database a relay published from, what its leader does and why.

And what operators want it to do.
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    connection = op.get_bind().execution_options(no_parameters=True)
    text = Path(__file__).with_name("0002_relay_position.sql").read_text("utf-8")
    connection.exec_driver_sql(text)
