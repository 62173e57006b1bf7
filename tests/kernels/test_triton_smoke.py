"""What is run first on a GPU reaches every Triton kernel."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from benchmarks.gpu.isolated import UnableError
from fastlrp.kernels import configs
from fastlrp.kernels.launch import Launch
from tests.gpu import smoke, smoke_tiles
from tests.kernels.test_compile import launched


@pytest.mark.slow
def test_every_kernel_is_reached(monkeypatch):
    """Nothing is computed: who is launched is written down."""
    names = set()
    monkeypatch.setattr(Launch, "run", lambda launch: names.add(launch.kernel.__name__))
    for module in (smoke, smoke_tiles):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
        monkeypatch.setattr(module, "relative", lambda got, expected: 0.0)
    for name, run in (*smoke.operations(["float32"]), *smoke_tiles.cases()):
        if name.startswith("triton"):
            with suppress(UnableError):
                run()
    assert names == launched()


def test_every_row_of_the_tables_has_a_call():
    for key in ("sm80", "sm90"):
        assert {kernel for kernel, _, _ in configs.table(key).rows} == smoke_tiles.KERNELS.keys()
