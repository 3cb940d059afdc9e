"""A count by which relay and workers recognise a database that went back."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE relay_position ADD COLUMN beat bigint")
