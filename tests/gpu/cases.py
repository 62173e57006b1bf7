"""Operations on the GPU against the definition: arguments are made on the CPU, results are compared there."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as tree

from benchmarks import precisions
from benchmarks.precisions import PRECISIONS
from fastlrp.backends import dispatch
from tests.ops import cases, test_registration

T = TypeVar("T")

DEVICE = torch.device(os.environ.get("FASTLRP_GPU_TESTS_ON", "cuda"))
"""``cpu`` rehearses the tests of results there: with composed operations, and what the interpreter and emulator run."""

BACKENDS = ("torch", "triton", "cuda")
OWN = ("triton", "cuda")
"""Backends that are our kernels."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HOW_MANY = os.environ.get("FASTLRP_GPU_TESTS", "usual")
"""``quick``: two dtypes alone; ``usual``; ``every``: all combinations of terms, signs and memory layouts per shape.

Triton compiles a kernel for each, which is what takes long.
"""

FULL = _HOW_MANY == "every"
NAMES = ("float32", "bfloat16") if _HOW_MANY == "quick" else tuple(DTYPES)
PRODUCTS = NAMES if _HOW_MANY == "quick" else (*NAMES, "tf32")
"""What products are tested in; TF32 is float32 with less."""


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name == "tf32" else DTYPES[name]


def bound(op: str, backend: str, dtype: torch.dtype, device: torch.device = DEVICE) -> Callable[..., Any]:
    """The backend's own function, or a skip with the reason why it has none."""
    reason = dispatch.reason(backend, op, device, dtype)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return dispatch.select(op, backend, device, dtype).call


def cast(given: T, dtype: torch.dtype, device: torch.device | None = None) -> T:
    """Tensors of floats in another dtype, all on another device."""

    def change(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return item.to(device or item.device, dtype if item.is_floating_point() else item.dtype)

    found: T = tree.tree_map(change, given)
    return found


def home(found: Any) -> Any:
    """Results as :func:`relative` wants what is expected: on the CPU, floats in float64."""
    return tree.tree_map(lambda t: t.to("cpu", torch.float64 if t.is_floating_point() else t.dtype)
                         if isinstance(t, Tensor) else t, found)  # fmt: skip


def relative(got: Any, expected: Any) -> float:
    """The largest error of any result, relative in the 2-norm; infinite where form or whole numbers differ."""
    if isinstance(expected, (tuple, list)):
        assert len(got) == len(expected), f"{len(got)} results, expected {len(expected)}"
        return max(relative(g, e) for g, e in zip(got, expected, strict=True))
    if expected is None:
        assert got is None, "a result where there is none to be"
        return 0.0
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    got = got.cpu()
    if not expected.is_floating_point():
        return 0.0 if torch.equal(got, expected) else math.inf
    if expected.numel() == 0:
        return 0.0
    assert expected.isfinite().all(), "the definition is not finite"
    error = (got.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    return math.inf if error.isnan() else float(error)


def check(
    op: str, backend: str, name: str, arguments: tuple[Any, ...], layouts: int | None = 1, channel_axis: int = 1
) -> None:
    """One call in one precision: equal to the definition, in ``layouts`` layouts of memory (None: in all).

    float32 and float64 keep the library's promise. In less, the error is at most twice that of composed PyTorch
    operations on this device, or half a unit of the dtype where these make none.
    """
    dtype = dtype_of(name)
    given = cast(arguments, dtype)
    expected = cases.reference(op)(*cast(given, torch.float64))
    here = cast(given, dtype, DEVICE)
    with precisions.using("tf32" if name == "tf32" else "float32"):
        call, most = bound(op, backend, dtype), limit(op, name, here, expected)
        for number, changed in enumerate(_laid_out(here, channel_axis)):
            if layouts is not None and number >= layouts and not FULL:
                break
            got = call(*changed)
            for result in tree.tree_leaves(got):
                if isinstance(result, Tensor) and result.is_floating_point():
                    assert result.dtype == dtype, f"{result.dtype}, expected {dtype}"
            error = relative(got, expected)
            assert error <= most, f"{op}, {backend}, {name}, layout {number}: off by {error:.3g}, at most {most:.3g}"


def limit(op: str, name: str, here: tuple[Any, ...], expected: Any) -> float:
    """The largest error that is right."""
    if name in ("float32", "float64"):
        return cases.TOLERANCE[DTYPES[name]]
    composed = dispatch.select(op, "torch", DEVICE, dtype_of(name)).call
    return max(2 * relative(composed(*here), expected), PRECISIONS[name].unit)


def _laid_out(arguments: tuple[Any, ...], channel_axis: int) -> Iterator[tuple[Any, ...]]:
    """The same arguments in other memory, as in ``tests.ops.cases``; channels-last second. Lists stay as they are."""
    with_targets, without = _last(channel_axis + 1), _last(channel_axis)
    same, gaps = cases.same, cases.with_gaps
    yield arguments
    with torch.device(DEVICE):
        for first, rest in (
            (with_targets, without), (gaps, gaps), (same, without), (with_targets, same), (cases.reversed_memory, same),
        ):  # fmt: skip
            yield cases.relayouts(arguments, first, rest)


def _last(axis: int) -> Callable[[Tensor], Tensor]:
    """An axis innermost in memory, of tensors that have it."""
    change = cases.channels_last(axis)
    return lambda t: change(t) if t.dim() > axis else t


def some(combinations: Sequence[T], number: int, count: int = 2) -> list[T]:
    """A few of them, others for every number, so that a table of shapes goes through all; all if asked for."""
    if FULL:
        return list(combinations)
    return [combinations[(count * number + i) % len(combinations)] for i in range(min(count, len(combinations)))]


def terms_and_signs() -> list[tuple[tuple[bool, bool], tuple[bool, bool]]]:
    """Which of u and v are there, and whether the call is signed and multiplies."""
    return [(has, sign) for has in ((True, False), (False, True), (True, True)) for sign in cases.signs()]


def samples() -> list[tuple[str, tuple[Any, ...]]]:
    """Calls of every operation, one or more of each, on the CPU in float32."""
    found: list[tuple[str, tuple[Any, ...]]] = list(test_registration.samples())
    heard = {op for op, _ in found}
    return [*found, *((op, given) for op, given in _more() if op in dispatch.OPS and op not in heard)]


def _more() -> Iterator[tuple[str, tuple[Any, ...]]]:
    torch.manual_seed(1)
    z, x = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    pool = ([2, 2], [2, 2], [0, 0], [1, 1])
    pooled, index = F.max_pool2d(z.relu(), 2, return_indices=True)
    flow, whole = torch.randn(2, 3, *pooled.shape[1:]), torch.randn(2, 3, 4, 6, 6)
    weight, u, v = torch.randn(4, 3, 3, 3), torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    conv = ([6, 6], [1, 1], [1, 1], [1, 1], 1)
    for coefficients, signed, multiply in (((u, None), False, False), ((u, v), True, True)):
        given = (flow, index, weight, *coefficients, x if signed else None, None, [6, 6], *pool, *conv)
        yield "conv_unpooled_relevance", (*given, signed, multiply)
    parts = [weight.clamp(min=0), weight.clamp(max=0)]
    for reduce in (False, True):
        yield "input_relevance", (whole, parts, [u, u], [x + 1, x - 1], *conv, reduce)
        yield "input_flat_relevance", (whole, u, 3, [3, 3], [6, 6], [1, 1], [1, 1], [1, 1], reduce)
    for rule in ("epsilon", "zplus", "gamma"):
        signs = (z.clamp(min=0), z.clamp(max=0))
        yield "elementwise_pooled_coefficients", (z, *signs, rule, 0.5, 1e-6, *pool, False)
