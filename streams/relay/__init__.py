"""Committed outbox rows into Kafka: read in order, published, confirmed when they are there.

Reading order: `relay` (stand by, lead, back off), `leader.session` (one plan after another),
`source` (rows in commit order), `sink` (rows to Kafka), `leader.maintenance` (what is proved
published), `leader.sweep` (what is sent again).
"""

from streams.relay.relay import Relay

__all__ = ["Relay"]
