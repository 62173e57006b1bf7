"""The same random numbers at each run, and for a test alone; each instruction set in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastlrp.backends.extension import loaded
from tests.fixtures import seeded

__all__ = ["isa", "seeded"]


_extension = loaded()


@pytest.fixture(params=[] if isinstance(_extension, str) else _extension.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this processor in turn, for the C++ kernels."""
    _extension.set_isa(request.param)
    yield request.param
    _extension.set_isa("auto")
