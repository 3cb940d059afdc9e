"""Which topics stood behind each name: a topic that was deleted and made again has another id."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE outbox_topics (
            topic      text NOT NULL,
            topic_id   text NOT NULL,
            cluster_id text NOT NULL,
            partitions integer NOT NULL,
            noted_at   timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (topic, topic_id)
        )
    """)
