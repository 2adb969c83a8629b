"""``run``: a command with databases of its own, and what goes on meanwhile."""
