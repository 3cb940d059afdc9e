"""Counts of what processes do, flushed into small tables beside their work."""
