"""A run: who gets which database, until when."""
