"""What is run first on a GPU reaches every CUDA kernel; emulated, it is right."""

from __future__ import annotations

import re
import subprocess

import pytest

from fastlrp.backends import cuda as backend
from fastlrp.backends import dispatch
from tests.cuda.emulated import ROOT, build, emulated
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401
from tests.gpu import smoke, smoke_sparse


@pytest.fixture
def cuda(monkeypatch):
    """The CPU taken for the device that CUDA kernels run on."""
    module = emulated()
    monkeypatch.setattr(backend, "kernels", lambda: module)
    monkeypatch.setattr(backend, "device_type", lambda: "cpu")
    for module_of_tests in (smoke, smoke_sparse):
        monkeypatch.setattr(module_of_tests, "DEVICE", smoke.torch.device("cpu"))
    dispatch._select.cache_clear()
    yield module
    dispatch._select.cache_clear()


def declared() -> set[str]:
    """Names of all kernels in the sources."""
    bounds = r"(?:__launch_bounds__\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))?"
    texts = [path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu*")]
    found = [re.findall(rf"__global__ void\s+{bounds}\s*(\w+)\(", text) for text in texts]
    assert sum(map(len, found)) == sum(len(re.findall(r"__global__", text)) for text in texts)
    return {name for names in found for name in names}


def launched(module) -> set[str]:
    """Names of the kernels that the emulator has run."""
    lines = subprocess.run(["nm", "-C", "--defined-only", build()], capture_output=True, text=True, check=True).stdout
    symbols = {int(place, 16): name for place, _, name in (line.split(" ", 2) for line in lines.splitlines())}
    heads = [re.match(r"(?:void )?(?:[\w]+::|\(anonymous namespace\)::)*(\w+)", symbols[at]) for at in module.kernels()]
    return {head[1] for head in heads if head is not None}


def test_every_kernel_is_reached(cuda):
    operations = [run for name, run in smoke.operations(["float32"]) if name.startswith("cuda ")]
    products = ("narrow 1", "depthwise 1", "linear 1", "dense float32")
    sparse = [run for name, run in smoke_sparse.cases() if name.endswith("float32")
              and ("product" not in name or any(word in name for word in products))]  # fmt: skip
    for run in (*operations, *sparse):
        run()
    assert launched(cuda) >= declared()


def test_a_vector_that_is_not_aligned_is_refused():
    """On a GPU it ends the process: no later call succeeds."""
    emulated().check_aligned(48, 16)
    with pytest.raises(RuntimeError, match="a vector of 16 bytes is read or written at an address that is no multiple"):
        emulated().check_aligned(40, 16)
    emulated().check_aligned(40, 8)
