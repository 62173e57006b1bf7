"""The way up: the fixtures of all folders."""

from tests.fixtures import seeded

__all__ = ["seeded"]
