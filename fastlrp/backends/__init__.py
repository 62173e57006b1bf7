"""Who computes an operation."""
