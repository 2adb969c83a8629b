"""What the user decided, and where its state and caches lie."""
