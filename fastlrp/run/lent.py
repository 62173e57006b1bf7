"""Memory that a record and its caller share: the model's inputs, and its outputs where they are large."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp.capture.fingerprint import Fingerprint

COPIED_BYTES = 1 << 20
"""Outputs of the model up to this size are handed out as copies."""


class Lent:
    """Hands out a forward pass's outputs, and notices changes of what is shared.

    Args:
        inputs: of the model, in the caller's memory. outputs: of the model, in the record's.
        device: where they are; on a GPU changes are seen as far as PyTorch counts them, since a look at the bits waits.
    """

    def __init__(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], device: torch.device) -> None:
        self._bits, self._lock = device.type == "cpu", threading.Lock()
        self._inputs: Fingerprint | None = Fingerprint(inputs)
        self._own, self._users = list(outputs), 1
        self._handed: list[Tensor] | None = None
        self._watched: Fingerprint | None = None
        self._changed = ""

    def share(self) -> Lent:
        """For one more record of the same forward pass."""
        with self._lock:
            self._users += 1
        return self

    def outputs(self) -> list[Tensor]:
        """The model's outputs: copies, unless they are large, or all records are closed and need them no more."""
        with self._lock:
            if self._handed is None:
                large = sum(t.nbytes for t in self._own) > COPIED_BYTES
                if large and self._users:
                    self._watched = Fingerprint(self._own)
                self._handed = self._own if large or not self._users else [t.clone() for t in self._own]
                self._own = []
            return self._handed

    def close(self) -> None:
        """A record that shares this is closed."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._inputs = self._watched = None

    def refuse_changed(self) -> None:
        """Raise RuntimeError if the caller has changed something in place."""
        with self._lock:
            if self._inputs is not None and self._inputs.changed(self._bits):
                self._changed = "the input was changed in place since this record's forward pass: make a new record"
            if self._watched is not None and self._watched.changed(self._bits):
                self._changed = (
                    "record.output was changed in place, and where it is large it is the record's own memory: make a "
                    "new record, and change a copy (record.output.clone())"
                )
            if self._changed:
                raise RuntimeError(self._changed)
