"""Whether the numbers in some tensors are still what they were, also where nothing was told to PyTorch.

PyTorch counts writes in a tensor's version, but not all of them: fused optimisers, NumPy arrays that share memory,
``.data`` and inference mode leave no trace. A :class:`Fingerprint` therefore looks at the bits themselves. Reading all
of them each time would cost 5 to 10 % of a call on VGG-16 (553 MB), so that a look reads

* small tensors, and what is left of large ones beside whole rows of 4 KB: all bits;
* of each larger tensor 256 words of 64 bits, evenly spread;
* a window of the larger tensors, by one sum per row of 4 KB: 256 KB or a 32nd of everything, whichever is more, and the
  next window at the next look.

A write to a whole tensor, as optimisers and most code make it, is seen at the next look; a write to a few entries of a
tensor above 32 KB at the latest after as many looks as there are windows, which are at most 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded

_ROW = 512
"""Words of 64 bits that one sum is over."""

_WHOLE = 4096
"""Tensors of up to this many words are compared bit by bit."""

_SAMPLES = 256
_WINDOW = 256 << 10
_WINDOWS = 32
_LARGEST = 4 << 20
"""Bytes that one sum operation reads at most, no more than a window, so that windows can be cut."""


class Fingerprint:
    """Remembers the numbers in tensors, which it does not copy.

    Args:
        tensors: parameters, buffers, constants. Those without plain memory (sparse, quantized, on the meta device) are
            looked at by address and version alone.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list({id(t): t for t in tensors}.values())
        self._placed = [t for t in self._tensors if _has_memory(t)]
        self._counted = [t for t in self._tensors if not t.is_inference()]
        self._strided = [t for t in self._placed if t.layout is torch.strided]
        module = loaded()
        # The extension looks several times as fast at the many small tensors of a model. One built before has no Bits.
        self._known: list[Any] = []
        self._seen: Any = None
        self._compiled: Any = module if not isinstance(module, str) and hasattr(module, "Bits") else None
        self._remember()

    def changed(self, bits: bool = True) -> bool:
        """Whether a write can be seen since the latest look that saw one; then what is there now is remembered.

        Args:
            bits: False looks at addresses and versions alone, which waits for nothing on a GPU.
        """
        if self._marks_hold() and not (bits and self._differs()):
            return False
        self._remember()
        return True

    def _marks(self) -> list[Any]:
        """Where and how the tensors lie and how often they were written to, as far as PyTorch knows."""
        # Lists: this runs before every explanation, also of small networks.
        places: list[Any] = [t.data_ptr() for t in self._placed] + [t._version for t in self._counted]
        return places + [(t.shape, t.stride()) for t in self._strided]  # ``w.data = w.data.t()``: the same memory.

    def _marks_hold(self) -> bool:
        return self._marks() == self._known if self._seen is None else self._seen.hold()

    def _compiled_marks(self) -> Any:
        if self._compiled is None:
            return None
        try:
            return self._compiled.Marks(self._placed, self._counted)
        except ValueError:  # A sparse tensor has an address, but not one block of memory.
            return None

    def _remember(self) -> None:
        # Marks that never hold, until all is remembered: Ctrl-C may come in between, and the change is then seen again.
        marks: Any = self._marks(), self._compiled_marks()
        self._known, self._seen = [None], None
        self._exact: list[list[Tensor]] = []
        self._rows: list[Tensor] = []
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        large = sum(size for size in (t.numel() * t.element_size() for t in self._placed) if size > 8 * _WHOLE)
        self._piece = min(_LARGEST, max(_WINDOW, large // _WINDOWS))
        with torch.inference_mode(False):
            for tensor in self._tensors:
                for part in self._parts(tensor):
                    groups.setdefault((part.device, part.dtype), []).append(part)
            self._exact = list(groups.values())
            self._bits, self._sums = self._kept()
        sizes = [rows.numel() * 8 for rows in self._rows]
        self._window, self._next = min(sum(sizes), max(_WINDOW, sum(sizes) // _WINDOWS)), 0
        self._known, self._seen = marks

    def _kept(self) -> tuple[Any, list[Tensor]]:
        """Bits of all parts and sums of all rows: both by the extension where all lie on the CPU."""
        parts = [part for group in self._exact for part in group]
        if self._compiled is not None and all(t.is_cpu for t in (*parts, *self._rows)):
            return self._compiled.Bits(parts, self._rows), []
        return [torch.cat(group) for group in self._exact], [piece.sum(1) for piece in self._rows]

    def _parts(self, tensor: Tensor) -> list[Tensor]:
        """What is compared bit by bit; of the rest sums are remembered."""
        data = _bytes(tensor)
        if data is None or not data.numel():
            return []
        head = min(-data.data_ptr() % 8, data.numel())
        if (data.storage_offset() + head) % 8:  # Memory that does not begin at a multiple of 8 bytes: never PyTorch's.
            return [data]
        count = (data.numel() - head) // 8
        edges = [data[:head], data[head + count * 8 :]]
        words = data[head : head + count * 8].view(torch.int64)
        parts = [edge for edge in edges if edge.numel()]
        if count <= _WHOLE:
            return [words, *parts] if count else parts
        whole = words[: count // _ROW * _ROW]
        rows = whole.view(-1, _ROW)
        for piece in rows.split(self._piece // (_ROW * 8)):
            self._rows.append(piece)
        parts.append(whole[:: max(1, whole.numel() // _SAMPLES)])
        if whole.numel() < count:
            parts.append(words[whole.numel() :])
        return parts

    def _differs(self) -> bool:
        if not isinstance(self._bits, list):
            found = self._bits.look(self._next, self._window)
            self._next = max(0, found)
            return bool(found < 0)
        if any(not torch.equal(torch.cat(parts), kept) for parts, kept in zip(self._exact, self._bits, strict=True)):
            return True
        left, at = self._window if self._rows else 0, self._next
        while left > 0:
            piece, sums = self._rows[at], self._sums[at]
            at = (at + 1) % len(self._rows)
            left -= piece.numel() * 8
            if not torch.equal(piece.sum(1), sums):
                return True
        self._next = at
        return False


def _has_memory(tensor: Tensor) -> bool:
    try:
        tensor.data_ptr()
    except RuntimeError:  # A tensor subclass, or a sparse one.
        return False
    return True


def _bytes(tensor: Tensor) -> Tensor | None:
    """The tensor's memory from its first to its last entry, as bytes; None if it has no plain memory."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):  # A fake, or one that wraps others.
        return None
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type not in ("cpu", "cuda"):
        return None
    try:
        bare = tensor.detach()
        if not bare.numel():
            return None
        span = 1 + sum((n - 1) * step for n, step in zip(bare.shape, bare.stride(), strict=True))
        if (bare.storage_offset() + span) * bare.element_size() > bare.untyped_storage().nbytes():
            return None
        return bare.as_strided((span,), (1,)).view(torch.uint8)
    except (RuntimeError, NotImplementedError):
        return None
