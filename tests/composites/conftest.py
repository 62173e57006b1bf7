from __future__ import annotations

from tests.fixtures import captured_once, one_thread, poisoned, seeded  # noqa: F401
