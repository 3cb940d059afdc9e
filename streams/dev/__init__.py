"""A real PostgreSQL and a real Kafka from Python wheels, and the supervisor behind `streams up`: not for production.

Reading order: process (a child that cannot outlive us), postgres, kafka, downloads, services, procfile, supervised,
supervisor, detached; conversations and demo play the part of business code.
"""
