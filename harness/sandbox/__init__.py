"""A developer's own databases, as `up` makes them."""
