"""What has to be true before a worker starts; each check is one clear line and an exit code."""

from __future__ import annotations

from streams import deploy, kafka
from streams.registry import Registry
from streams.settings import RETRY_SUFFIX, Settings
from streams.worker.tables import TABLES


def check(settings: Settings, registry: Registry) -> None:
    """Database reachable and migrated, biz_types known to it, broker reachable, topics with the right partition count."""
    with deploy.connection(settings) as connection:
        deploy.check(connection)
        deploy.register(connection, settings, registry)
    topics = [*registry.topics, *(topic + RETRY_SUFFIX for topic in registry.topics)]
    # Faust would make them itself, after it has looked at them: a worker that comes first would find them without partitions.
    changelogs = {
        f"{settings.worker.group}-{topic}-{table}-changelog": topic for topic in registry.topics for table in TABLES
    }
    kafka.prepare_topics(settings, topics, changelogs)
