"""Changes of the tables, in order; applied when a `Store` is opened."""
