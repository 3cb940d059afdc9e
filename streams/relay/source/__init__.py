"""Where committed rows come from: the log, or the table."""
