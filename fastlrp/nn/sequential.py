"""A network of thin modules."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.nn.layers import UNKNOWN, Linear, ReLU, Softmax, Tanh
from fastlrp.nn.module import LRPModule
from fastlrp.nn.training import fit


class Layers:
    """A network's layers, as a list and as PyTorch's method of the same name."""

    def __init__(self, net: nn.Sequential) -> None:
        self._net = net

    def __call__(self) -> Iterator[nn.Module]:
        return nn.Module.modules(self._net)

    def __getitem__(self, place: Any) -> Any:
        return list(self._net)[place]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._net)

    def __len__(self) -> int:
        return len(self._net)


def complete(net: nn.Sequential) -> None:
    """Give layers that were made by their number of outputs alone the number of inputs that the layer before says.

    Raises:
        ValueError: if no layer before it says that.
    """
    features = None
    for name, module in net.named_children():
        if isinstance(module, Linear) and module.in_features == UNKNOWN:
            if features is None:
                raise ValueError(
                    f"layer {name!r}, Linear({module.out_features}), needs its number of inputs, which no layer before "
                    f"it says: Linear(m, {module.out_features})"
                )
            module.build(features)
        if isinstance(module, nn.Linear):
            features = module.out_features
        elif not isinstance(module, (ReLU, Tanh, Softmax)):
            features = None


class Sequential(LRPModule, nn.Sequential):
    """Modules one after the other, ``Sequential(a, b, …)``, ``Sequential([a, b, …])`` or an ``OrderedDict``.

    Example::

        net = fastlrp.nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 15), nn.Tanh(), nn.Linear(15, 2))
        points = torch.rand(20, 2)
        scores = net.forward(points, lrp_aware=True)
        one_hot = torch.nn.functional.one_hot(scores.argmax(1), 2)
        R = net.lrp(scores * one_hot, "epsilon", 0.1)  # (20, 2)
    """

    def __init__(self, *modules: Any) -> None:
        if len(modules) == 1 and isinstance(modules[0], (list, tuple)):
            modules = tuple(modules[0])
        super().__init__(*modules)
        complete(self)

    @property
    def modules(self) -> Layers:  # type: ignore[override]
        """The layers as a list, ``net.modules[::-1]``, as in the Toolbox; called, PyTorch's ``net.modules()``."""
        return Layers(self)

    def forward(self, x: Tensor, lrp_aware: bool = False) -> Tensor:
        """See :meth:`fastlrp.nn.LRPModule.forward`. Without ``lrp_aware`` the input alone is remembered for ``lrp``."""
        if lrp_aware:
            return super().forward(x, lrp_aware)
        self._remember(x)
        output = super().forward(x)
        if not torch.compiler.is_compiling():
            self._aware().output = weakref.ref(output)
        return output

    def _input_of(self, x: Tensor) -> Tensor:
        """The latest forward pass's input in the place of its output; any other tensor as it is."""
        aware = self._aware()
        if aware.x is not None and aware.output is not None and aware.output() is x:
            return aware.x
        return x

    def lrp_layerwise(
        self, layer: int | str | nn.Module, R: Tensor, lrp_var: str | None = None, param: float | None = None
    ) -> Tensor:
        """Relevance of one layer's input from that of its output, at the latest forward pass.

        Args:
            layer: its position, its name in this network, or the module itself.
            R: relevance of the layer's output, ``(B, …)`` or ``(B, K, …)``.
            lrp_var, param: see :meth:`fastlrp.nn.LRPModule.lrp`.

        Raises:
            KeyError: if the network has no such layer. RuntimeError: before a forward pass. TypeError: for a layer
            that is not one of :mod:`fastlrp.nn`.
        """
        name = self._name_of(layer)
        module = self._modules[name]
        if not isinstance(module, LRPModule):
            raise TypeError(f"layer {name!r} is a {type(module).__name__}, not one of fastlrp.nn")
        x = self._record("auto")._inputs.tensors[0]
        if module.__dict__.get("_lrp_of") is not self._aware().records["auto"]:
            with torch.no_grad():
                for key, before in self._modules.items():
                    if key == name:
                        break
                    assert before is not None
                    x = before(x)
            module.forward(x, lrp_aware=True)
            module.__dict__["_lrp_of"] = self._aware().records["auto"]
        return module.lrp(R, lrp_var, param)

    def _name_of(self, layer: int | str | nn.Module) -> str:
        names = list(self._modules)
        if isinstance(layer, int) and not isinstance(layer, bool) and -len(names) <= layer < len(names):
            return names[layer]
        if isinstance(layer, str) and layer in self._modules:
            return layer
        for name, module in self._modules.items():
            if module is layer:
                return name
        raise KeyError(f"this network has no layer {layer!r}: its layers are {', '.join(names)}")

    def drop_softmax_output_layer(self) -> None:
        """Remove the last layer if it is a softmax: scores are explained, not probabilities."""
        if len(self) and isinstance(self[-1], (Softmax, nn.Softmax)):
            del self[-1]
            self._aware().forget()

    fit = fit
