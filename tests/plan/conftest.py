"""The same random numbers at each run, and for a test alone."""

from tests.fixtures import seeded

__all__ = ["seeded"]
