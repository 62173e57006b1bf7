"""``LayerLRP`` with Captum's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp.compat.captum.graph import inputs_of, outputs_of
from fastlrp.compat.captum.kinship import as_captum_calls_it
from fastlrp.compat.captum.layers import named_layers
from fastlrp.compat.captum.lrp import LRP, as_tuple, delta, one_or_many
from fastlrp.run.record import ForwardRecord


class LayerLRP(LRP):
    """Relevance of the outputs or inputs of layers, called as ``captum.attr.LayerLRP`` is.

    Args:
        model, options: as for :class:`LRP`.
        layer: a module of the model, with or without sub-modules; a list of them; or None for all layers.

    Raises:
        TypeError, ValueError: if ``layer`` is not a module, or not one of this model.

    Example::

        from fastlrp.compat.captum import LayerLRP

        relevance = LayerLRP(model, model[3]).attribute(x, target=3)
    """

    _captum_name = "LayerLRP"

    def __init__(self, model: nn.Module, layer: nn.Module | Sequence[nn.Module] | None, **options: Any) -> None:
        super().__init__(model, **options)
        self.layer = layer
        self.device_ids: list[int] | None = getattr(model, "device_ids", None)

    @property
    def layer(self) -> nn.Module | Sequence[nn.Module] | None:
        """The layer or layers; Captum's tools for concepts put another one here."""
        return self._layer

    @layer.setter
    def layer(self, layer: nn.Module | Sequence[nn.Module] | None) -> None:
        self._paths = [path for path, _ in named_layers(self.model)]
        if layer is not None:
            self._paths = [_path_of(self.model, m) for m in (layer if isinstance(layer, (list, tuple)) else [layer])]
        self._layer = layer

    @staticmethod
    def interpolate(
        layer_attribution: Tensor, interpolate_dims: int | tuple[int, ...], interpolate_mode: str = "nearest"
    ) -> Tensor:
        """A layer's relevance ``(B, C, …)`` in another size, to lay it over the input; not LRP, and sums are not kept.

        Args:
            interpolate_dims: the new sizes of the axes behind the channels.
            interpolate_mode: of :func:`torch.nn.functional.interpolate`.
        """
        return F.interpolate(layer_attribution, interpolate_dims, mode=interpolate_mode)

    @as_captum_calls_it
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
        *,
        targets: Any = None,
    ) -> Any:
        """Relevance at the layers, for one target or for many at once.

        Args:
            attribute_to_layer_input: of the layer's input in the place of its output.
            inputs, target, additional_forward_args, return_convergence_delta, verbose, targets: see
                :meth:`LRP.attribute`.

        Returns:
            a tensor of the shape of the layer's output (input); a tuple of them if there are several, in the order in
            which the layer reads them, call by call if it is called more than once. A list of those for a list of
            layers, or for ``layer=None``. With ``return_convergence_delta`` a pair of that and the delta, or list of
            deltas.

        Raises:
            ValueError: for a layer that computes nothing in this model. Otherwise as :meth:`LRP.attribute`.
        """

        def pick(record: ForwardRecord, asked: Tensor) -> list[list[Tensor]]:
            names = [_names(record, path, attribute_to_layer_input) for path in self._paths]
            wanted = list(dict.fromkeys(name for group in names for name in group))
            found = record.relevance(asked, layers=wanted)
            return [[found[name] for name in group] for group in names]

        given = as_tuple(inputs)
        found, scores = self._explained(given, target, targets, additional_forward_args, verbose, pick)
        many, several = targets is not None, not isinstance(self.layer, nn.Module)
        shaped = [tuple(one_or_many(r, many) for r in group) for group in found]
        results = [group[0] if len(group) == 1 else group for group in shaped]
        deltas = [one_or_many(delta(group, scores), many) for group in found]
        if return_convergence_delta:
            return (results, deltas) if several else (results[0], deltas[0])
        return results if several else results[0]


def _path_of(model: nn.Module, layer: Any) -> str:
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a module of the model, a list of them or None, got {type(layer).__name__}")
    path = next((path for path, module in model.named_modules() if module is layer), None)
    if not path:
        what = "not a module of this model" if path is None else "the model itself: use LRP for its input"
        raise ValueError(f"layer, a {type(layer).__name__}, is {what}")
    return path


def _names(record: ForwardRecord, path: str, inputs: bool) -> list[str]:
    """Names under which the record knows the tensors at a module's edge."""
    graph = record.plan.graph
    values = inputs_of(graph, path) if inputs else []
    if not values:  # A dropout has no operation, and its input is its output.
        values = outputs_of(graph, path)
    if not values:
        raise ValueError(f"layer {path!r} computes nothing in this model: take the layer before it")
    named = {f"{path}: {value.name}": value for value in values}
    graph.modules = {**graph.modules, **named}  # A new dict: another thread may be reading the old one.
    return list(named)
