"""Which files decide a schema, and their content."""
