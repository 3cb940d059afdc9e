"""Runs of records from Kafka into PostgreSQL: one transaction a run, acked after its commit, in order per partition.

Reading order: `ledger` (which offset may be committed), `transport` (Faust's driver that delivers runs), `lanes` (one run
a partition at a time), `decode`, `transaction` (the one transaction), `fate` (what an error means), `assembly` (the app).
"""
