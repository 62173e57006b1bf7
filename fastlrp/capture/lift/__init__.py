"""Graphs whose batch axis travels, rewritten so that it stays in front, and what proves where it stands."""
