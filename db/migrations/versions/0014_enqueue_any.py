"""outbox_enqueue() takes its payload as text and as jsonb too.

It also says what registers a biz_type.
"""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
locks = "nothing: functions are added, and one is replaced"


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    connection.exec_driver_sql(Path(__file__).with_name("0014_enqueue_any.sql").read_text("utf-8"))
