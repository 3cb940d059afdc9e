"""A count by which relay and workers recognise a database that went back."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("ALTER TABLE relay_position ADD COLUMN beat bigint")
