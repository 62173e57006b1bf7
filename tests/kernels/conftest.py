"""Triton's kernels run with NumPy here: the switch must be set before any of them is imported.

Where there is a GPU the process is left to it (``pytest -m gpu``); ``TRITON_INTERPRET=1 pytest tests/kernels`` runs
these tests there.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_triton_*.py"]

from benchmarks import precisions
from fastlrp.backends import dispatch
from tests.fixtures import poisoned, seeded  # noqa: F401


def _products_of_bfloat16() -> None:
    """The interpreter keeps bfloat16 as integers, and its product takes them for such: give it their values."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def value(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype.kind == "f":
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def patched(self, a, b, *rest):
        return create_dot(self, value(a), value(b), *rest)

    InterpreterBuilder.create_dot = patched


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 products are float32's, if a test does not say otherwise; PyTorch by default allows TF32 in some."""
    with precisions.using("float32"):
        yield


@pytest.fixture
def own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No user's table of configurations, and none remembered."""
    from fastlrp.kernels import configs

    monkeypatch.setenv("FASTLRP_CACHE", str(tmp_path / "cache"))
    configs.reload()
    yield
    configs.reload()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend is chosen anew: other tests in this process may have been refused it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch._select.cache_clear()
    yield
    dispatch._select.cache_clear()


def _products_of_tf32() -> None:
    """TF32 products as tensor cores make them: the last 13 bits of each factor are cut off."""
    import numpy as np
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def cut(handle: TensorHandle) -> TensorHandle:
        return TensorHandle((handle.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), handle.dtype)

    def patched(self, a, b, total, precision, *rest):
        if precision == ir.INPUT_PRECISION.TF32 and a.data.dtype == b.data.dtype == np.float32:
            a, b = cut(a), cut(b)
        return create_dot(self, a, b, total, precision, *rest)

    InterpreterBuilder.create_dot = patched


def _arrays_of_one_entry() -> None:
    """Triton 3.6's interpreter takes an array of one entry for a number in ``range``, which NumPy 2.5 refuses."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    _products_of_bfloat16()
    _products_of_tf32()
    _arrays_of_one_entry()
