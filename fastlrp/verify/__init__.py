"""The same relevance by the textbook, and the comparison with it."""
