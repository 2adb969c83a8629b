"""The output of pg_dump as a source."""
