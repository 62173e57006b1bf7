"""Layers of PyTorch Geometric, two of each in a small network that reads out graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp
from benchmarks.zoo.case import Case, Maker
from tests.torchvision_models import import_models

NODES = 6
_EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 0, 2, 5, 3, 4], [1, 0, 2, 1, 4, 3, 2, 0, 3, 5, 5]])
_GRAPHS = torch.tensor([0, 0, 0, 1, 1, 1])

_PLAIN = {
    "GCNConv": {}, "GINConv": {"nn": True}, "SAGEConv": {}, "SAGEConv, max": {"aggr": "max"}, "GATConv": {},
    "GATv2Conv": {}, "TransformerConv": {}, "ChebConv": {"K": 2}, "GraphConv": {}, "EdgeConv": {"nn": 2}, "TAGConv": {},
    "ARMAConv": {}, "SGConv": {"K": 2}, "ResGatedGraphConv": {}, "GENConv": {}, "ClusterGCNConv": {}, "LEConv": {},
    "FiLMConv": {}, "MFConv": {}, "HypergraphConv": {}, "SuperGATConv": {}, "GeneralConv": {},
    "SSGConv": {"alpha": 0.1}, "RGCNConv": {"num_relations": 2}, "RGATConv": {"num_relations": 2},
}  # fmt: skip
"""Classes with the arguments that they need beside sizes; ``nn``: a network of so many times as many features."""


class _Network(nn.Module):
    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.second, self.head = _layer(name, options, 5), _layer(name, options, 8), nn.Linear(8, 3)
        self.relations = "num_relations" in options

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        from torch_geometric.nn import global_add_pool

        more = [torch.arange(edge_index.shape[1]) % 2] if self.relations else []
        x = self.first(x, edge_index, *more).relu()
        x = self.second(x, edge_index, *more).relu()
        pooled: Tensor = self.head(global_add_pool(x, batch))
        return pooled


def _layer(name: str, options: dict[str, Any], inner: int) -> nn.Module:
    import torch_geometric.nn as geometric

    options = dict(options)
    times = options.pop("nn", None)
    if times is not None:
        inside = nn.Sequential(nn.Linear(int(times) * inner, 8), nn.ReLU(), nn.Linear(8, 8))
        return _module(getattr(geometric, name)(inside))
    return _module(getattr(geometric, name.split(",")[0])(inner, 8, **options))


def _module(made: Any) -> nn.Module:
    assert isinstance(made, nn.Module)
    return made


class _GraphCase(Case):
    """A batch of two graphs is one sample; what stands alone in it are the nodes, which may have any order."""

    def run(self, inputs: Any) -> Tensor:
        return super().run(inputs).unsqueeze(0)

    def explainer(self, composite: str) -> fastlrp.Explainer:
        return fastlrp.GraphExplainer(self.model, composite, example_inputs=self.inputs)

    def alone(self) -> tuple[Any, Callable[[Tensor], Tensor]]:
        order = torch.tensor([2, 0, 1, 5, 4, 3])
        place = order.argsort()
        renamed = {**self.inputs, "x": self.inputs["x"][order], "edge_index": place[self.inputs["edge_index"]]}
        return renamed, lambda t: t[:, :, order]


def _case(name: str, options: dict[str, Any]) -> Case:
    import_models()  # PyTorch Geometric imports torchvision, if there is one.
    model = _Network(name, options).double().eval()
    return _GraphCase(model, {"x": torch.randn(NODES, 5).double(), "edge_index": _EDGES, "batch": _GRAPHS})


def cases() -> Iterable[tuple[str, str, Maker]]:
    """Group, name, and the function that makes the case."""
    for name, options in _PLAIN.items():
        yield "torch_geometric layers", name, lambda name=name, options=options: _case(name, options)  # type: ignore[misc]
