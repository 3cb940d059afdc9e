"""The connector of Debezium that publishes instead of the relay."""
