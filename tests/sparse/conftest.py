from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastlrp.backends.extension import extension
from tests.fixtures import captured_once, one_thread, poisoned, seeded  # noqa: F401

KERNELS = extension()


@pytest.fixture(params=KERNELS.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this machine has."""
    KERNELS.set_isa(request.param)
    yield request.param
    KERNELS.set_isa("auto")


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
