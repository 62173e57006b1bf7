"""Notices that a model has changed since it was captured."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn


class Watch:
    """Remembers a model's modules, parameters and buffers, and their versions."""

    def __init__(self, model: nn.Module) -> None:
        self._links: list[tuple[dict[str, Any], str, Any]] = []
        self._sizes: list[tuple[dict[str, Any], int]] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        self._tensors: list[Tensor] = []
        for module in model.modules():
            self._modes.append((module, module.training))
            tables = (module._modules, module._parameters, module._buffers)
            self._sizes += [(table, len(table)) for table in tables]
            self._links += [(module._modules, key, child) for key, child in module._modules.items()]
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    self._links.append((table, key, tensor))
                    if tensor is not None:
                        self._tensors.append(tensor)
        self._versions = self._read()
        self.home: Tensor | None = next((p for p in model.parameters() if p.is_floating_point()), None)

    def _read(self) -> list[tuple[int, int]]:
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._tensors]

    @property
    def versions(self) -> list[tuple[int, int]]:
        """Where the weights lie and how often they were written to, as of now."""
        return self._read()

    def change(self) -> Literal["structure", "values"] | None:
        """What is different since the last look: other modules or tensors, other numbers in them, or nothing."""
        # Plain loops: this runs before every explanation, and generators would cost a small network dearly.
        for table, size in self._sizes:
            if len(table) != size:
                return "structure"
        for table, key, item in self._links:
            if table.get(key) is not item:
                return "structure"
        for module, mode in self._modes:
            if module.training != mode:
                return "structure"
        versions = self._read()
        if versions != self._versions:
            self._versions = versions
            return "values"
        return None
