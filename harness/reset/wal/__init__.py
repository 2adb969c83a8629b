"""What the write-ahead log tells of a database."""
