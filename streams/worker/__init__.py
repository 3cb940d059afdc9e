"""Runs of records from Kafka into PostgreSQL: one transaction a run, acked after its commit.

Reading order: `app` (what is assembled), `topic_agent` (a run is delivered, worked, acked),
`run.pipeline` (its one transaction), `run.until_done` (until it commits), `failure` (whose fault an
error is), `driver` (Faust's side of it).
"""
