"""The pytest plugin. ``pg_harness_pytest`` is what pytest loads; this is imported where something is configured."""
