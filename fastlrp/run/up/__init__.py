"""Relevance of groups of entries: up from the groups, or to an edge in between, and which way costs the least."""
