"""A worker's connections, with their limits of time."""
