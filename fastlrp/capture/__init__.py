"""From an unmodified model to a graph."""
