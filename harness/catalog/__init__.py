"""All admin SQL and advisory locks: the one door to psycopg."""
