"""What to explain: from what a user writes to initial relevance at the output."""
