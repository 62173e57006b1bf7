"""Layers whose kernel or matrix is computed from the input, as in CondConv: products of two activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import kind

CALLS: dict[str, Any] = {
    "plain": (F.conv2d, (6, 2, 3, 3), {"stride": 2, "padding": 1}),
    "bias": (F.conv2d, (6, 2, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": (F.conv2d, (6, 2, 2, 3), {"dilation": (1, 2), "padding": "same"}),
    "transposed, bias": (F.conv_transpose2d, (4, 3, 3, 3), {"stride": 2, "output_padding": 1}),
}


class Computed(nn.Module):
    """Two groups; all samples in one call, each as groups of its own."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.call, self.shape, self.geometry = CALLS[form]
        self.first, self.last = nn.Conv2d(2, 4, 3), nn.Linear(6, 3)
        self.kernels = nn.Linear(4, torch.Size(self.shape).numel())
        self.biases = nn.Linear(4, 6) if "bias" in form else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        pooled = x.mean((2, 3))
        kernel, bias = self.kernels(pooled).reshape(-1, *self.shape[1:]), None
        if self.biases is not None:
            bias = self.biases(pooled).flatten()
        y = self.call(x.reshape(1, -1, *x.shape[2:]), kernel, bias, groups=2 * len(x), **self.geometry)
        return self.last(y.view(len(x), 6, *y.shape[2:]).relu().mean((2, 3)))

    def one_by_one(self, x: Tensor, kernel_takes: float) -> Tensor:
        """The same outputs, with the derivatives of the definition."""
        x = self.first(x).relu()
        pooled = x.mean((2, 3))
        found = []
        for i, kernel in enumerate(self.kernels(pooled).view(-1, *self.shape)):
            a = self.call(x[i : i + 1], kernel.detach(), groups=2, **self.geometry)
            b = self.call(x[i : i + 1].detach(), kernel, groups=2, **self.geometry)
            found.append((1 - kernel_takes) * a + kernel_takes * b)
        y = torch.cat(found)
        if self.biases is not None:
            y = y + self.biases(pooled)[:, :, None, None]
        return self.last(y.relu().mean((2, 3)))


@pytest.mark.each_value
@pytest.mark.parametrize("form", list(CALLS))
@pytest.mark.parametrize("rule", [rules.Uniform(0.0), rules.ValueOnly(0.0)], ids=["uniform", "value only"])
def test_relevance_is_gradient_times_input_of_the_definition(form: str, rule: rules.Rule) -> None:
    """Half of it to the kernel, or none."""
    torch.manual_seed(0)
    model, x = Computed(form).double().eval(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, composites.epsilon(0.0).with_entries((kind("product"), rule)))
    found = explainer(x, "all")
    point = x.clone().requires_grad_()
    scores = model.one_by_one(point, 0.0 if isinstance(rule, rules.ValueOnly) else 0.5)
    for k in range(3):
        (gradient,) = torch.autograd.grad(scores[:, k].sum(), point, retain_graph=True)
        # Measured: 6e-16 of the largest entry.
        torch.testing.assert_close(found[:, k], gradient * x, rtol=1e-11, atol=1e-13)
    assert explainer.verify(x, [0]).ok
    torch.testing.assert_close(explainer(x[1:2], "all"), found[1:2], rtol=1e-11, atol=1e-13)


def test_over_a_constant_it_is_linear_in_the_kernel() -> None:
    class OverConstant(nn.Module):
        picture: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("picture", torch.randn(1, 2, 5, 5))

        def forward(self, kernel: Tensor) -> Tensor:
            found: Tensor = F.conv2d(self.picture, kernel.flatten(0, 1)).view(-1, 3, 9).sum(-1)
            return found

    torch.manual_seed(0)
    model, x = OverConstant().double().eval(), torch.randn(2, 3, 2, 3, 3, dtype=torch.float64)
    found = fastlrp.explain(model, x, [1], composites.lrp0())
    expected = torch.zeros(2, 1, 3, 2, 3, 3, dtype=torch.float64)
    windows = F.unfold(model.picture, 3).sum(-1).view(2, 3, 3)
    expected[:, 0, 1] = x[:, 1] * windows
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("biased", [False, True])
def test_a_computed_matrix(biased: bool) -> None:
    """``F.linear(x, W(x))`` over the nodes of a graph, and the same as a product."""

    class Linear(nn.Module):
        def __init__(self, written: bool) -> None:
            super().__init__()
            self.first, self.last, self.written = nn.Linear(4, 4), nn.Linear(5, 3), written
            self.bias = nn.Parameter(torch.randn(5)) if biased else None

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if not self.written:
                return self.last(F.linear(x, h, self.bias).relu())
            y = x @ h.t()
            return self.last((y if self.bias is None else y + self.bias).relu())

    torch.manual_seed(0)
    model, x = Linear(False).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    same = Linear(True).double().eval()
    same.load_state_dict(model.state_dict())
    found = fastlrp.GraphExplainer(model, "attnlrp")(x, [0, 2])
    torch.testing.assert_close(found, fastlrp.GraphExplainer(same, "attnlrp")(x, [0, 2]), rtol=1e-11, atol=1e-13)
