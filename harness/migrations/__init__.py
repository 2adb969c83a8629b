"""Where the schema comes from: sources, their fingerprints, and finding them in a project."""
