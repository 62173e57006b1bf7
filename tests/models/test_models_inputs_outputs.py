"""Several outputs in any structure, several inputs, and outputs of other shapes."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from tests.models import oracle
from tests.models.cases import Written, conv, vector, volume
from tests.models.checks import unmodified


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


Pair = namedtuple("Pair", "p q")

STRUCTURES: dict[str, tuple[Callable[..., Any], dict[Any, Callable[[Any], Tensor]]]] = {
    "tuple": (lambda h, p, q: (p, q), {"0": lambda o: o[0], 1: lambda o: o[1]}),
    "list": (lambda h, p, q: [p, q], {"1": lambda o: o[1]}),
    "tuple_of_one": (lambda h, p, q: (p,), {None: lambda o: o[0]}),
    "dict": (lambda h, p, q: {"p": p, "q": q, "n": 3, "nothing": None}, {"p": lambda o: o["p"], 1: lambda o: o["q"]}),
    "nested": (
        lambda h, p, q: {"p": p, "more": (h, [q])},
        {"more.0": lambda o: o["more"][0], "more.1.0": lambda o: o["more"][1][0]},
    ),
    "dataclass": (lambda h, p, q: Output(p, (h, q)), {"logits": lambda o: o.logits, "hidden.1": lambda o: o.hidden[1]}),
    "namedtuple": (lambda h, p, q: Pair(p, q), {"p": lambda o: o.p, "q": lambda o: o.q}),
}


def _model(structure: Callable[..., Any]) -> nn.Module:
    def body(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.a(x))
        return structure(h, m.b(h), m.c(h))

    return Written(body, a=nn.Linear(10, 16), b=nn.Linear(16, 4), c=nn.Linear(16, 3)).double().eval()


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_several_outputs(name: str) -> None:
    structure, picks = STRUCTURES[name]
    model, x = _model(structure), vector().double()
    for output, pick in picks.items():
        explainer = fastlrp.Explainer(model, "lrp0", output=output)
        with unmodified(model), explainer.forward(x) as record:
            theirs = model(x)
            assert type(record.output) is type(theirs)
            ours_flat, theirs_flat = _leaves(record.output), _leaves(theirs)
            assert len(ours_flat) == len(theirs_flat)
            for mine, other in zip(ours_flat, theirs_flat, strict=True):
                assert torch.equal(mine, other) if isinstance(other, Tensor) else mine == other
            relevance = record.relevance([0, 2])
        expected = oracle.relevance(model, x, [0, 2], pick=pick)
        assert oracle.relative_error(relevance, expected) <= 1e-14


def _leaves(output: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(vars(output) if dataclasses.is_dataclass(output) else output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, r"returns 2 tensors \(p, q\): name one with output="),
        ("r", "output='r' is not one of the model's outputs: p, q"),
        (2, "output=2 is not one of the model's outputs: p, q"),
    ],
)
def test_the_output_must_be_named(output: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastlrp.explain(_model(lambda h, p, q: Pair(p, q)), vector().double(), [0], output=output)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(5, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        h = F.relu(self.a(x) + self.b(y)) * scale
        return self.c(h if mask is None else h * mask)


def test_several_inputs() -> None:
    """Against one input that is both, ``[x, y]``, under [A, B]."""
    model = TwoInputs().double().eval()
    x, y = vector().double(), torch.randn(3, 5, dtype=torch.float64)
    joined = nn.Linear(15, 16).double()
    joined.weight.data = torch.cat([model.a.weight, model.b.weight], 1)
    joined.bias.data = model.a.bias + model.b.bias
    one = nn.Sequential(joined, nn.ReLU(), model.c).eval()
    expected = fastlrp.explain(one, torch.cat([x, y], 1), [0, 2], "lrp0").split([10, 5], 2)
    explainer = fastlrp.Explainer(model, "lrp0")
    of_tuple = explainer((x, y), [0, 2])
    assert isinstance(of_tuple, tuple)
    of_dict = explainer({"y": y, "x": x}, [0, 2])
    assert list(of_dict) == ["y", "x"]
    for found in (of_tuple, (of_dict["x"], of_dict["y"])):
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)
    layers = explainer((x, y), [0, 2], layers=["a", "b"])
    assert set(layers) == {"a", "b", "input", "output"}
    assert torch.equal(layers["input"]["input.1"], of_tuple[1])
    assert explainer.verify((x, y), [0, 2]).ok


def test_inputs_that_are_no_activations() -> None:
    model = TwoInputs().eval()
    x, y = vector(), torch.randn(3, 5)
    plain = fastlrp.explain(model, (x, y), [1])
    scaled = fastlrp.explain(model, {"x": x, "y": y, "scale": 2.0}, [1])
    assert set(scaled) == {"x", "y"}
    assert not torch.allclose(scaled["x"], plain[0])
    masked = fastlrp.explain(model, {"x": x, "y": y, "mask": torch.ones(3, 16, dtype=torch.bool)}, [1])
    assert masked["mask"] is None
    torch.testing.assert_close(masked["x"], plain[0])


def test_an_input_that_the_output_does_not_depend_on() -> None:
    model = Written(lambda m, x, y: m.a(x), a=nn.Linear(10, 4)).eval()
    relevance, nothing = fastlrp.explain(model, (vector(), vector()), [1])
    assert relevance.shape == (3, 1, 10)
    assert nothing is None


def test_embeddings() -> None:
    """The relevance of an id is that of the row that it chooses."""
    model = Written(
        lambda m, ids, x: m.c(F.relu(m.embed(ids).mean(1) + m.a(x))),
        embed=nn.Embedding(7, 16), a=nn.Linear(10, 16), c=nn.Linear(16, 4),
    ).double().eval()  # fmt: skip
    ids, x = torch.randint(0, 7, (3, 6)), vector().double()
    of_ids, relevance = fastlrp.explain(model, (ids, x), [1])
    assert of_ids.shape == (3, 1, 6)
    assert relevance.shape == (3, 1, 10)
    found = fastlrp.explain(model, (ids, x), [1], "lrp0", layers=["embed", "a"])
    assert found["embed"].shape == (3, 1, 6, 16)
    score = model(ids, x)[:, 1]
    bias = torch.autograd.grad(score.sum(), [model.a.bias, model.c.bias])
    kept = sum((b * g).sum() for b, g in zip((model.a.bias, model.c.bias), bias, strict=True))
    torch.testing.assert_close(found["embed"].sum(-1), found["input"]["input.0"])
    total = found["embed"].sum() + found["input"]["input.1"].sum()
    torch.testing.assert_close(total, (score.sum() - kept).detach())


SHAPES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Any, tuple[int, ...]]] = {
    "score_per_sample": (lambda: Written(lambda m, x: m.a(x).squeeze(-1), a=nn.Linear(10, 1)), vector, 0, (3, 1, 10)),
    "one_column": (lambda: nn.Linear(10, 1), vector, 0, (3, 1, 10)),
    "map_per_class": (lambda: conv(3, 5), lambda: volume(2), [0, 3], (2, 2, 3, 7, 8)),
    "tokens": (lambda: nn.Linear(12, 4), lambda: volume(1), [0, 2], (2, 2, 3, 12)),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_outputs_of_other_shapes(name: str) -> None:
    make, sample, targets, shape = SHAPES[name]
    model, x = make().double().eval(), sample().double()
    relevance = fastlrp.explain(model, x, targets, "lrp0")
    assert relevance.shape == shape
    point = x.clone().requires_grad_(True)
    output = model(point)
    chosen = output.unsqueeze(1) if output.dim() == 1 else output
    for k, target in enumerate([targets] if isinstance(targets, int) else targets):
        gradient = torch.autograd.grad(chosen[:, target].sum(), point, retain_graph=True)[0]
        torch.testing.assert_close(relevance[:, k], x * gradient)
    assert fastlrp.Explainer(model).verify(x, targets).ok


def test_one_tensor_for_two_inputs_is_two_inputs():
    """Each has the relevance of what the model reads of it, also in a call with others after it."""
    first, second = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x, y):
            return self.first(x) + 2 * self.second(y)

    x = torch.randn(2, 4, dtype=torch.float64)
    explainer = fastlrp.Explainer(Two(), "lrp0")
    same, apart = explainer((x, x), [0]), explainer((x, x.clone()), [0])
    for found, expected in zip(same, apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(same[0][:, 0], x * first.weight[0], rtol=1e-12, atol=1e-14)
