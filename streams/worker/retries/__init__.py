"""When what was set aside is due again."""
