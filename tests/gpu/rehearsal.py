"""A CPU in the GPU's place: Triton's interpreter runs its kernels, the emulator of thread blocks those of CUDA."""

from __future__ import annotations

from fastlrp.backends import cuda, dispatch
from tests.cuda.emulated import emulated


def take_its_place() -> None:
    """For the rest of the process, which must have been started with ``TRITON_INTERPRET=1``.

    Raises:
        pytest.skip.Exception: where the emulator cannot be built; it says why.
    """
    from tests.kernels import conftest  # noqa: F401  # Mends the interpreter's products of bfloat16 and TF32.

    module = emulated()
    cuda.kernels = lambda: module
    cuda.device_type = lambda: "cpu"
    dispatch._select.cache_clear()
