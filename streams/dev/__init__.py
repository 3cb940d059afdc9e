"""A real PostgreSQL and Kafka from wheels, and the supervisor of `streams up`: for development.

Reading order: process (a child that cannot outlive us), postgres, kafka, downloads, services,
procfile, supervised, supervisor, detached; conversations and demo play the part of business code.
"""
