"""A real PostgreSQL and a real Kafka from Python wheels, and the supervisor behind `streams up`; for development and tests only.

Reading order: process (a child that cannot outlive us), postgres, kafka (java, downloads), procfile, supervisor, demo.
"""
