"""A GPU that is not there: Triton compiles for it and loads nothing.

So what a GPU will launch is in Triton's cache before there is one. Kernels go the same way as on the device, from a
launch with tensors (of the CPU here) to the machine code, under the same key of the cache, if Triton and Python are of
the same version there. So do the small extensions that launch them, each the work of a C compiler. Nothing is computed:
results stay what the memory held.
"""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

CAPABILITY = 90
SHARED = 232448
"""Bytes of shared memory that a block may ask for; Triton refuses a kernel that wants more."""


class _Utils:
    launch = None

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024


class Absent:
    """As much of a driver of Triton's as compiling needs."""

    utils = _Utils()

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Marks the kernel's folder in the cache as of today: what was compiled for older sources is left behind."""
        from triton import knobs
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(source, metadata)  # Builds the extension, where there is one for each signature.
        os.utime(Path(knobs.cache.dir) / base64.b32encode(bytes.fromhex(metadata.hash)).decode().rstrip("="))
        return lambda *given: None

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def build_only() -> None:
    """Triton's extensions are built into its cache, marked as of today, and not loaded: the driver's library is absent.

    A library without content stands for that one when they are linked.
    """
    from triton.runtime import build

    folder = Path(tempfile.mkdtemp())
    command = [os.environ.get("CC", "cc"), "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1")], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)

    def built(name: str, path: str) -> Any:
        os.utime(Path(path).parent)
        return SimpleNamespace(launch=None, PyCUtensorMap=None)

    build._load_module_from_path = built


def take_its_place() -> None:
    """From now on this process compiles for the absent GPU, with the tiles of its table."""
    import triton
    from triton.backends.nvidia.driver import CudaUtils

    from fastlrp.backends import dispatch
    from fastlrp.backends.triton import Triton
    from fastlrp.kernels import configs

    build_only()
    with suppress(AttributeError):  # It asks the extension, which is not loaded, for its functions.
        CudaUtils()
    triton.runtime.driver.set_active(Absent())
    Triton.why_not = lambda self, device: None  # type: ignore[method-assign]
    configs.device_key = lambda device_type, index: "sm90"
    configs.reload()
    dispatch._select.cache_clear()
