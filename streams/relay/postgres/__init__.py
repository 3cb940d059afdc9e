"""What the relay reads of the server: slot, floor, whether the database is the one it knows."""
