from __future__ import annotations

from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401
