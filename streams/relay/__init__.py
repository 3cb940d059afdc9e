"""Committed outbox rows into Kafka, in commit order, confirmed once the broker has them.

Reading order: `rows` (what moves), `pgoutput` (bytes to rows), `cdc` and `poll` (the sources), `admission` and `publisher`
(rows to Kafka), `flights` (what is safe to confirm), `floor` and `upkeep` (what is proven published), `sweep` (what was lost),
`connector` and `debezium` (a connector that publishes instead), `look`, `hole` and `way` (what the database allows now),
`heal` (from polling to the slot without a gap), `leadership`, `watch` and `slot_care` (what a leader looks after), `term` and
`leader` (the loop), `switch` and `adopt` (what operators do).
"""

from streams.relay.relay import Relay

__all__ = ["Relay"]
