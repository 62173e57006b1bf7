"""``masked_scatter`` in which every sample fills its own places from its own entries: image features among words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.capture.translate.rewrite import Step, Steps

aten = torch.ops.aten


@dataclass(frozen=True)
class EntriesInOrder:
    """``gather`` along axis 1 by how many places came before, for samples that have a place for every entry."""

    whole = aten.gather.default
    """The operation whose arguments it takes."""

    def __call__(self, entries: Tensor, dim: int, before: Tensor) -> Tensor:
        last = entries.shape[dim] - 1
        wrong = before[:, -1] != last  # Otherwise what is left over goes to the next sample.
        wrong[-1:] = before[-1:, -1] > last
        if bool(wrong.any()):
            sample = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"masked_scatter: the mask has {int(before[sample, -1]) + 1} places in sample {sample}, and "
                f"{last + 1} entries are of that sample: the places of one sample would be filled from another. Give "
                "every sample as many places as it has entries (image tokens for its own image), or explain samples "
                "that have as many together"
            )
        return torch.gather(entries, dim, before.clamp(0, last))


def filled_in_order(a: dict[str, Any], shape: Any) -> Steps | None:
    """``where`` the mask is set the sample's entries in their order, elsewhere what stood there.

    PyTorch's takes the entries of all samples in one row, which is the same where every sample has as many places as
    entries; anything else is an error when it runs.
    """
    x, mask, source = a["self"], a["mask"], a["source"]
    if not all(isinstance(v, Value) for v in (x, mask, source)) or not x.has_batch_first or x.shape != shape:
        return None
    entries = _entries(source)
    if not mask.has_batch_first or len(mask.shape) != len(shape) or not entries or not math.prod(x.sizes):
        return None
    places = math.prod(x.sizes)
    flat = (None, places)
    return [
        (aten.reshape.default, "reshape", (source, [-1, entries]), {}, (None, entries), source.dtype),
        (aten.expand.default, "expand", (mask, [-1, *x.sizes]), {}, shape, torch.bool),
        (aten.reshape.default, "reshape", (Step(1), [-1, places]), {}, flat, torch.bool),
        (aten.cumsum.default, "cumsum", (Step(2), 1), {}, flat, torch.int64),
        (aten.sub.Tensor, "sub", (Step(3), 1), {}, flat, torch.int64),
        (EntriesInOrder(), "gather", (Step(0), 1, Step(4)), {}, flat, source.dtype),
        (aten.reshape.default, "reshape", (Step(5), [-1, *x.sizes]), {}, shape, source.dtype),
        (aten.where.self, "where", (Step(1), Step(6), x), {}),
    ]


def _entries(source: Value) -> int:
    """How many entries are of one sample, in rows of samples one after the other; 0 if that cannot be said."""
    if source.has_batch_first:
        return source.numel
    first, *others = source.shape or (None,)
    rows = re.fullmatch(r"(\d+)\*\w+", first) if isinstance(first, str) else None
    sizes = [n for n in others if isinstance(n, int)]
    return int(rows[1]) * math.prod(sizes) if rows is not None and len(sizes) == len(others) else 0
