"""One running PostgreSQL, whoever starts it."""
