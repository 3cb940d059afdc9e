"""In which transaction a message died: a preview knows which deaths it did not see."""

from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0016"
locks = (
    "outbox_dead_letters and outbox_operations, their readers too, and so whoever lets a message"
    " die, for a moment: a column is added to each"
)


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0017_unseen_deaths.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
