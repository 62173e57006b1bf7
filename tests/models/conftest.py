import pytest
import torch

from tests.fixtures import captured_once  # noqa: F401


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)
