"""Shapes that :mod:`fastlrp.capture.trace.quick_shapes` gives are those that PyTorch finds out step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp.capture.trace.quick_shapes import shapes_by_definition


class Everything(nn.Module):
    """Operations of each sort, on maps in order, channels-last and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6, bias=False)
        self.layer, self.plain = nn.LayerNorm(6), nn.LayerNorm((5, 6), elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.conv(x)), inplace=True)
        y = y * F.hardsigmoid(F.adaptive_avg_pool2d(y, 1)) + y.sigmoid()
        tokens = self.layer(self.linear(y.flatten(2).transpose(1, 2)[:, :5]))
        weights = F.softmax(tokens @ tokens.transpose(1, 2), -1)
        tokens = self.plain(F.gelu(weights @ tokens).transpose(1, 2).tanh().transpose(1, 2))
        return F.silu(F.leaky_relu(tokens.exp()).neg()).transpose(1, 2).reshape(x.shape[0], -1)


def traced(model: nn.Module, x: Tensor) -> list[Any]:
    """Operations with shape, layout and dtype of what they give."""
    dynamic = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({**dynamic},), strict=False)
    nodes = [(str(n.target), n.meta["val"]) for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    return [(target, str(tuple(t.shape)), str(t.stride()), t.dtype) for target, t in nodes]


def test_a_model_without_data() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(3, 2), nn.GELU()).eval(), torch.empty(2, 3)
    with shapes_by_definition():
        assert [shape for _, shape, _, _ in traced(model, x)][-1].endswith(", 2)")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shapes_are_those_that_are_found_out_step_by_step(layout: torch.memory_format) -> None:
    model, x = Everything().eval(), torch.randn(2, 3, 7, 7).to(memory_format=layout)
    with shapes_by_definition():
        found = traced(model, x)
    assert found == traced(model, x)
    assert len(found) > 30


def test_layouts_are_those_of_the_tensors_themselves() -> None:
    """Where axes of size 1 leave the layout open too."""
    x = torch.randn(2, 4, 1, 1).as_strided((2, 4, 1, 1), (4, 1, 4, 4))
    model = nn.Sequential(nn.Sigmoid(), nn.ReLU()).eval()
    with shapes_by_definition():
        assert [strides for _, _, strides, _ in traced(model, x)][1:3] == ["(4, 1, 1, 1)"] * 2
    assert model(x).stride() == (4, 1, 1, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.Linear(5, 2), "shapes cannot be multiplied"), (nn.LayerNorm(5), "normalized_shape")],
)
def test_what_does_not_fit_is_the_models_own_error(model: nn.Module, message: str) -> None:
    with pytest.raises(fastlrp.CaptureError, match=f"it fails on this input itself.*{message}"):
        fastlrp.Explainer(model.eval(), "epsilon").forward(torch.randn(2, 3, 4))


def test_what_others_do_is_put_back() -> None:
    ops = [torch.ops.aten.linear.default, torch.ops.aten.matmul.default, torch.ops.aten.lstm.input]
    before = [dict(op.py_kernels) for op in ops]
    with pytest.raises(KeyError), shapes_by_definition():
        raise KeyError
    assert [op.py_kernels for op in ops] == before
