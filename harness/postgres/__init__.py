"""The nouns of a PostgreSQL server, and the one door to psycopg."""
