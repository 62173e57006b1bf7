from __future__ import annotations

from tests.fixtures import poisoned, seeded  # noqa: F401
