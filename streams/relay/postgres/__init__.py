"""What the relay reads of the server: the slot, the floor, and whether the database is the one it knows."""
