"""Nothing any more: the counts of chat history are the agent's own, in `chat_history/`."""

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    pass
