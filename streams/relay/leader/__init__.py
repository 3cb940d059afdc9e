"""A relay that leads: its session, what it plans, and what it keeps in order meanwhile."""
