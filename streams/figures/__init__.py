"""Counts of what processes do, flushed into small tables beside their work, and what only a leader can tell."""
