"""Room on the pages of agent_chats: a new version of a row that fits its page touches no index."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE agent_chats SET (fillfactor = 50)")
