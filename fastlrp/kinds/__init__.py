"""Kinds of operations."""
