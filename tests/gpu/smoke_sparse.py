"""One small call of every CUDA function for living neurons, beside the CPU's own function of the same name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as tree

from fastlrp.backends import dispatch
from tests.cuda.sparse_conv_cases import CPU, KINDS, Case, Kind, pattern, rows_of, wide
from tests.cuda.test_cuda_sparse_up import Up
from tests.gpu.cases import DEVICE
from tests.sparse.cases import Layer, alive

TILES = {
    "narrow": (Layer(5, 7, (9, 8), 3, padding=1, batch=1), 7), "32 targets": (Layer(70, 20, (3, 4), 3, batch=1), 20),
    "64 targets": (Layer(70, 20, (3, 4), 3, batch=1), 50), "128 targets": (Layer(70, 20, (3, 4), 3, batch=1), 70),
    "linear": (Layer(130, 40, ()), 33), "depthwise": (Layer(8, 8, (5, 7), 3, padding=1, groups=8), 33),
}  # fmt: skip
"""A layer and a number of targets for each kernel of the product."""


class OnDevice:
    """Functions of the extension for CUDA, with arguments and results on the CPU."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernels = dispatch.sparse_kernels(DEVICE)
        assert kernels is not None, "the extension has no kernels for CUDA"
        call = getattr(kernels, name)

        def moved(where: torch.device, given: Any) -> Any:
            return tree.tree_map(lambda t: t.to(where) if isinstance(t, Tensor) else t, given)

        def run(*arguments: Any, **named: Any) -> Any:
            return moved(torch.device("cpu"), call(*moved(DEVICE, arguments), **moved(DEVICE, named)))

        return run


GPU = OnDevice()


def same(found: Any, expected: Any) -> None:
    """Equal to the last bit: these functions move and count, and their sums have one order."""
    one, other = tree.tree_leaves(found), tree.tree_leaves(expected)
    assert len(one) == len(other), f"{len(one)} results, expected {len(other)}"
    for number, (f, e) in enumerate(zip(one, other, strict=True)):
        assert (f.shape, f.dtype) == (e.shape, e.dtype), f"result {number}: {f.dtype} {tuple(f.shape)}"
        assert torch.equal(f, e), f"result {number} is off in {int((f != e).sum())} of {e.numel()} places"


def on_device(kind: Kind) -> Kind:
    """With the tolerance for a GPU, whose tensor cores truncate what they add where the emulator rounds."""
    return replace(kind, tolerance=max(1.5 * kind.tolerance, 1e-5 if kind.dtype == torch.float32 else 0.0))


def masks_and_rows(dtype: torch.dtype) -> tuple[Tensor, Any, Tensor]:
    torch.manual_seed(0)
    mask = alive(2, 35, 4, 5, density=0.4, dtype=torch.float32).to(dtype)
    return mask, pattern(mask), torch.randn(2, 33, *mask.shape[1:]).to(dtype)


def patterns(dtype: torch.dtype) -> None:
    """Channels in the middle, channels last, an index, more words than one scan takes."""
    mask, _, _ = masks_and_rows(dtype)
    for given in (mask, mask.movedim(1, -1).contiguous().movedim(-1, 1)):
        same(GPU.sparse_pattern([(given, None)]), CPU.sparse_pattern([(wide(given), None)]))
    index = torch.randint(20, (2, 35, 2, 3))
    masks = [(mask, index), (alive(2, 35, 2, 3, density=0.2, dtype=torch.float32).to(dtype), None)]
    same(GPU.sparse_pattern(masks), CPU.sparse_pattern([(wide(m), i) for m, i in masks]))
    many = alive(1, 2, 41, 53, density=0.5, dtype=torch.float32).to(dtype)
    same(GPU.sparse_pattern([(many, None)]), pattern(many))


def from_and_to_dense(dtype: torch.dtype) -> None:
    mask, entries, register = masks_and_rows(dtype)
    expected = CPU.sparse_from_dense(wide(register), entries).to(dtype)
    for given in (register, register.movedim(2, -1).contiguous().movedim(-1, 2)):
        same(GPU.sparse_from_dense(given, entries), expected)
    rows, size = rows_of(register, entries), list(mask.shape[1:])
    same(GPU.sparse_to_dense(rows, 2, 33, size), CPU.sparse_to_dense(wide(rows), 2, 33, size).to(dtype))
    narrow = (rows[0][:, 3:22], *rows[1:])
    same(GPU.sparse_to_dense(narrow, 2, 19, size), CPU.sparse_to_dense(wide(narrow), 2, 19, size).to(dtype))


def sums(dtype: torch.dtype) -> None:
    mask, entries, register = masks_and_rows(dtype)
    others = pattern(alive(*mask.shape, density=0.5, dtype=torch.float32))
    factor = alive(*mask.shape, density=0.9, dtype=torch.float32).to(dtype)
    given = [(*rows_of(register, entries), None), (*rows_of(register, others), factor)]
    found, expected = GPU.sparse_sum(given, entries, 2, 33), CPU.sparse_sum(wide(given), entries, 2, 33).to(dtype)
    same(found[:, :33], expected[:, :33])


def pools(dtype: torch.dtype) -> None:
    """Winners of a max-pool, windows of an average pool, sums of what either gathers; the scan of many tiles."""
    torch.manual_seed(0)
    for size, window in (((2, 40, 7, 6), (3, 1, 1)), ((2, 5, 8, 8), (2, 2, 0)), ((1, 2, 41, 53), (3, 2, 1))):
        x = torch.randn(size).clamp(min=0)
        kernel, stride, padding = ([n, n] for n in window)
        _, index = F.max_pool2d(x, *window, return_indices=True)
        above = pattern(alive(*index.shape, density=0.5, dtype=torch.float32))
        given = (index, above, list(size[2:]), kernel, stride, padding, [1, 1])
        found = GPU.sparse_winners(*given)
        same(found, CPU.sparse_winners(*given))
        rows = rows_of(torch.randn(size[0], 19, *index.shape[1:]).to(dtype), above)
        expected = CPU.sparse_gather_sum(wide(rows), *found[2:], 19).to(dtype)
        same(GPU.sparse_gather_sum(rows, *found[2:], 19)[:, :19], expected[:, :19])
        wanted = pattern(alive(*size, density=0.5, dtype=torch.float32))
        asked = (wanted, above, size[0], list(size[2:]), list(index.shape[2:]), kernel, stride, padding)
        same(GPU.sparse_windows(*asked), CPU.sparse_windows(*asked))


def product(layer: Layer, count: int, kind: Kind, products: int, up: bool) -> str:
    torch.manual_seed(0)
    if up:
        way = Up(layer, kind, count, products, above=0.6, below=0.6)
        way.case.close(way.dense(way.call(GPU)), way.expected())
    else:
        case = Case(layer, kind, count, products, 0.6, 0.6)
        case.close(case.dense(case.call(module=GPU)), case.expected())
    return f"within {kind.tolerance:g}"


def into_a_dense_result(kind: Kind) -> None:
    """Written by the product itself, and by a fold of several groups of channels with factors."""
    torch.manual_seed(0)
    layer = Layer(5, 7, (9, 8), 3, padding=1)
    case = Case(layer, kind, 17, 1, 0.6, 1.0)
    case.close(wide(case.call(channels=layer.inputs, module=GPU)), case.everywhere())
    size, folds = (layer.batch, layer.inputs, *layer.size), 2
    weights = [layer.weight(kind.wide).to(kind.dtype) for _ in range(folds)]
    masks, factors = ([case.alive(*size, density=d) for _ in range(folds)] for d in (0.4, 1.0))
    packed = [torch.cat([layer.canonical(w) for w in weights], 2)]
    found = case.call(layer.inputs, weights=packed, leaving=pattern(torch.cat(masks, 1)), factors=factors, module=GPU)
    parts = [f.double().unsqueeze(1) * (m != 0).unsqueeze(1) * case.everywhere([w])
             for f, m, w in zip(factors, masks, weights, strict=True)]  # fmt: skip
    # Summands were rounded before they are added, and may cancel.
    error = float((found.double() - sum(parts)).norm()) / sum(float(part.norm()) for part in parts)
    assert error <= 1.5 * kind.tolerance, f"folds are off by {error:.3g}"


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of each; float32 first."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        for call in (patterns, from_and_to_dense, sums, pools):
            yield f"sparse {call.__name__} {name}", lambda c=call, d=dtype: c(d)
    for kind in map(on_device, KINDS.values()):
        yield f"sparse product dense {kind.name}", lambda k=kind: into_a_dense_result(k)
        for tile, (layer, count) in TILES.items():
            for products in (1, 2):
                up = (products == 2) == (kind.name in ("float32", "bfloat16"))
                title = f"sparse product {'up' if up else 'down'} {tile} {products} {kind.name}"
                yield title, lambda a=(layer, count, kind, products, up): product(*a)
