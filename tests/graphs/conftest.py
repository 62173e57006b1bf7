"""Graph networks: the fixtures of all folders."""

from tests.fixtures import one_thread, poisoned, seeded

__all__ = ["one_thread", "poisoned", "seeded"]
