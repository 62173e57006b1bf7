"""One operation between linear layers, and what must hold of its relevance by the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp
from tests.models.cases import Body, Written, constant


@dataclass(frozen=True)
class Case:
    """What stands between two linear layers, and whose input times gradient its relevance under LRP-0 is.

    Attributes:
        surrogate: a function whose ``h * gradient`` is the relevance of ``h``; the body itself where None is given.
        degree: by which that is divided.
        conserves: whether all that arrives is sent on.
    """

    body: Body
    degree: int = 1
    surrogate: Body | None = None
    conserves: bool = True
    shape: tuple[int, ...] = (8,)


def model_of(case: Case) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    size = torch.Size(case.shape).numel()
    layers = {"a": nn.Linear(6, size), "p": constant(8), "w": constant(8, 8)}

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(case.body(m, m.h(m.a(x))).flatten(1))

    model = Written(forward, h=nn.Unflatten(1, case.shape), **layers).double()
    with torch.no_grad():
        outputs = case.body(model, model.h(model.a(torch.randn(3, 6).double()))).flatten(1).shape[1]
    model.last = nn.Linear(outputs, 3, bias=False).double()
    return model.eval(), torch.randn(3, 6).double()


def check_definition(case: Case) -> None:
    """LRP-0: above stands ``W y``, so that what arrives is ``y W_k``, and relevance is ``h`` times a gradient."""
    model, x = model_of(case)
    explainer = fastlrp.Explainer(model, "lrp0")
    found = explainer(x, "all", layers=["h"])["h"]
    h = model.h(model.a(x)).detach().requires_grad_()
    y = (case.surrogate or case.body)(model, h).flatten(1)
    for k in range(3):
        (gradient,) = torch.autograd.grad((y * model.last.weight[k]).sum(), h, retain_graph=True)
        torch.testing.assert_close(found[:, k], h.detach() * gradient / case.degree, rtol=1e-9, atol=1e-10)
    report = explainer.verify(x, "all")
    assert report.ok, str(report)
    assert abs(report.kept["unexplained"]) < 1e-9, str(report)
    if case.conserves:
        arrived = model(x).detach()
        torch.testing.assert_close(found.flatten(2).sum(2), arrived, rtol=1e-8, atol=1e-9)
    point = x.clone().requires_grad_()
    output = model(point)
    expected = [torch.autograd.grad(output[:, k].sum(), point, retain_graph=True)[0] for k in range(3)]
    with explainer.forward(x) as record:
        gradient = record.under("gradient").relevance("all", initial="one")
        epsilon_plus = record.under("epsilon_plus").relevance("all")
    torch.testing.assert_close(gradient, torch.stack(expected, 1), rtol=1e-9, atol=1e-9)
    with explainer.forward(x[1:2]) as record:
        alone = record.under("epsilon_plus").relevance("all")
    torch.testing.assert_close(alone, epsilon_plus[1:2], rtol=1e-9, atol=1e-10)


def relevance_of(function: Callable[[Tensor], Tensor], x: Tensor, composite: Any = "lrp0") -> Tensor:
    """Relevance of a bare function's inputs for its own first output, ``(B, *x)``."""
    model = Written(lambda m, x: function(x)).eval()
    start = torch.zeros(1, 1, *function(x).shape[1:]).double()
    start.view(-1)[0] = 12.0
    return fastlrp.explain(model, x.double(), start, composite)[:, 0]
