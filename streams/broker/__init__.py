"""Kafka as the settings describe it: for relay, worker, audit and the command line."""
