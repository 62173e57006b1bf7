"""In-place operations whose result depends on the order in which they write, because entries share a place in memory.

PyTorch refuses most of them when they run (``expand``), and computes the others in any order (``unfold``, a slice that
is added to another one of the same tensor by one entry). A graph of values could only have one meaning of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.errors import module_text

_BY_INDEX = ("index", "_index", "_unsafe_index", "scatter", "masked_scatter", "put")
"""Operations that write where an index says, which is not looked at."""


def overlap(fx: torch.fx.Node, whole: Sequence[torch.fx.Node], name: str, path: str) -> str | None:
    """Why an in-place operation cannot be followed, if what it writes overlaps with itself or with what it reads.

    Args:
        whole: the tensors that the one which it writes into is a view of.
    """
    written, *others = (_tensor(node) for node in fx.all_input_nodes)
    if written is None:
        return None
    where = f"operation '{name}_' in module {module_text(path)} writes in place"
    others = [] if name.startswith(_BY_INDEX) else others
    if any(x is not None and _sized_by_data(x) for x in (written, *map(_tensor, whole), *others)):
        return (
            f"{where} where sizes are computed from data (as those of nonzero and boolean indices are), for all "
            "samples of a batch together: keep one entry per sample, and choose entries with torch.where or fixed "
            "integer indices"
        )
    if any(x is not None and _overlaps_itself(x) for x in (written, *map(_tensor, whole))):
        return (
            f"{where} into a tensor of which several entries are one place in memory (as those of expand and unfold "
            "are), so that what it leaves depends on the order of writing: call .clone() before, or write the "
            "operation without the underscore"
        )
    for other in others:
        if other is not None and _shares_memory(other, written) and _overlaps(written, other):
            return (
                f"{where} into a part of a tensor from which it reads another part that overlaps with it, so that what "
                "it leaves depends on the order of writing: read from a .clone(), or write the operation without the "
                "underscore"
            )
    return None


def _tensor(node: torch.fx.Node) -> Tensor | None:
    meta = node.meta.get("val")
    return meta if isinstance(meta, Tensor) and meta.layout == torch.strided else None


def _plain(numbers: Any) -> list[Any]:
    """Sizes of the example, where they are symbolic; None for those that only data tells."""
    return [n.node.hint if isinstance(n, torch.SymInt) else int(n) for n in numbers]


def _sized_by_data(x: Tensor) -> bool:
    return any(n is None for n in _plain((*x.shape, *x.stride(), x.storage_offset())))


def _overlaps_itself(x: Tensor) -> bool:
    reach = 0
    for stride, size in sorted(zip(_plain(x.stride()), _plain(x.shape), strict=True)):
        if size > 1:
            if stride <= reach:
                places = _places(x)
                return places.unique().numel() < places.numel()
            reach += stride * (size - 1)
    return False


def _places(x: Tensor) -> Tensor:
    """The place of each entry in the storage."""
    found = torch.zeros((), dtype=torch.int64)
    for stride, size in zip(_plain(x.stride()), _plain(x.shape), strict=True):
        found = found.unsqueeze(-1) + stride * torch.arange(size)
    return found + _plain([x.storage_offset()])[0]


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    try:
        return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
    except NotImplementedError:  # Inside torch.vmap.
        return False


def _overlaps(written: Tensor, read: Tensor) -> bool:
    """Whether an entry is read from where another one is written."""
    target, source = _places(written), _places(read)
    try:
        source = source.expand(target.shape)
    except RuntimeError:  # It is not read entry by entry.
        return bool(torch.isin(source, target).any())
    return bool(torch.isin(source[source != target], target).any())
