"""Committed outbox rows into Kafka, in commit order, confirmed once the broker has them.

Reading order: `rows` (what moves), `pgoutput` (bytes to rows), `cdc` and `poll` (the sources), `admission` and `publisher`
(rows to Kafka), `flights` (what is safe to confirm), `floor` and `upkeep` (what is proven published), `sweep` (what was lost),
`connector` and `debezium` (a connector that publishes instead), `leadership` and `leader` (the loop).
"""

from streams.relay.leader import Relay

__all__ = ["Relay"]
