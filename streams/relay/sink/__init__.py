"""From rows to records in Kafka, and what becomes of a row that no record can carry."""
