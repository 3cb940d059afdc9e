"""Rejected records as ranges of offsets.

A topic full of another life's records makes no row for each.
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # What an older worker adds is a range of one record: without a last offset.
    op.execute(
        "ALTER TABLE outbox_rejects ADD COLUMN last_offset bigint, ADD COLUMN count bigint NOT NULL"
        " DEFAULT 1"
    )
