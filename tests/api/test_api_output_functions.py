"""``output=`` as a function of what the model returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
from fastlrp.capture.chosen import output_key
from tests.api.models import relative_error

TIGHT = 1e-12


@dataclass
class Returned:
    """Named fields."""

    scores: Tensor
    hidden: Tensor


class Tagger(nn.Module):
    """(B, 6, 4) -> scores (B, 6, 9) in one of several packages."""

    def __init__(self, package: str = "dict") -> None:
        super().__init__()
        self.package = package
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 9)
        self.mix = nn.Conv1d(6, 6, 1)

    def forward(self, x: Tensor):
        hidden = F.relu(self.mix(F.relu(self.first(x))))
        scores = self.head(hidden)
        if self.package == "record":
            return Returned(scores=scores, hidden=hidden)
        return {"scores": scores, "hidden": hidden} if self.package == "dict" else (scores, hidden)


class Chosen(nn.Module):
    """The same choice as a model of its own."""

    def __init__(self, model: nn.Module, choose) -> None:
        super().__init__()
        self.model, self.choose = model, choose

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self.model(x))


def tagger(package: str = "dict") -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tagger(package).double().eval()


@cache
def same(package: str, choose) -> tuple[Tagger, Chosen]:
    """A model, and one that chooses by itself."""
    model = tagger(package)

    def unpacked(out):
        found = choose(out)
        return found[0] if isinstance(found, list) else found["only"] if isinstance(found, dict) else found

    return model, Chosen(model, unpacked).eval()


X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize(
    ("package", "choose"),
    [
        ("dict", lambda out: out["scores"][:, -1]),
        ("dict", lambda out: out["scores"].mean(1)),
        ("dict", lambda out: [out["scores"][:, 2, 1:5]]),
        ("tuple", lambda out: {"only": out[0].flatten(1)}),
        ("record", lambda out: out.scores.transpose(1, 2)[..., 0]),
        ("record", lambda out: out.hidden.sum(2)),
    ],
)
@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon", "gradient"])
def test_equals_a_model_that_does_it_itself(package, choose, composite):
    model, written = same(package, choose)
    explainer = fastlrp.Explainer(model, composite, output=choose)
    expected = fastlrp.explain(written, X, "all", composite)
    with explainer.forward(X) as record:
        assert torch.equal(record.scores, written(X))
        assert type(record.output) is type(model(X))
        assert relative_error(record.relevance("all"), expected) <= TIGHT
    assert relative_error(fastlrp.explain(model, X, "all", composite, output=choose), expected) <= TIGHT
    assert explainer.verify(X, [0, 1]).ok


def test_an_output_as_it_is():
    model = tagger()
    found = fastlrp.explain(model, X, [3], "epsilon", output=lambda out: out["scores"])
    assert torch.equal(found, fastlrp.explain(model, X, [3], "epsilon", output="scores"))


def test_its_operations_have_a_path_of_their_own():
    explainer = fastlrp.Explainer(tagger(), "epsilon", output=lambda out: out["scores"].mean(1), example_inputs=X)
    assert "(output)" in str(explainer.plan)
    with explainer.forward(X) as record:
        assert "(output).mean" in record.layer_names
        assert record.relevance(2, layers=["(output).mean"])["(output).mean"].shape == (2, 1, 9)


def test_parts_of_the_model_and_tensors_from_outside_may_be_used():
    model, probe = tagger(), nn.Linear(5, 3).double().requires_grad_(False)

    class Probed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.probe = model, probe

        def forward(self, x: Tensor) -> Tensor:
            return self.probe(self.model(x)["hidden"][:, 0])

    found = fastlrp.explain(model, X, "all", "epsilon", output=lambda out: probe(out["hidden"][:, 0]))
    assert relative_error(found, fastlrp.explain(Probed().eval(), X, "all", "epsilon")) <= TIGHT
    again = fastlrp.explain(model, X, "all", "epsilon", output=lambda out: model.head(out["hidden"][:, 0]))
    expected = fastlrp.explain(model, X, "all", "epsilon", output=lambda out: out["scores"][:, 0])
    assert relative_error(again, expected) <= TIGHT


def test_functions_are_told_apart_by_identity():
    model = tagger()
    first, last = (fastlrp.explain(model, X, 0, output=lambda out, at=at: out["scores"][:, at]) for at in (0, -1))
    assert not torch.equal(first, last)

    class Always:
        """Equal to everything, and without a hash."""

        def __eq__(self, other: object) -> bool:
            return True

        def __call__(self, out):
            return out["scores"][:, 0]

    one, other = Always(), Always()
    assert {output_key(one): 1, output_key("scores"): 2}[output_key(one)] == 1
    assert output_key(one) not in (output_key(other), output_key("scores"))
    assert output_key("scores") == output_key("scores")
    assert output_key(0) != output_key(False)
    assert relative_error(fastlrp.explain(model, X, 0, output=one), first) <= TIGHT


def test_what_it_closes_over_is_read_at_capture_and_after_a_refresh():
    model, at = tagger(), [0]
    explainer = fastlrp.Explainer(model, "epsilon", output=lambda out: out["scores"][:, at[0]])
    first = explainer(X, 0)
    at[0] = -1
    assert torch.equal(explainer(X, 0), first)
    explainer.refresh()
    expected = fastlrp.explain(model, X, 0, "epsilon", output=lambda out: out["scores"][:, -1])
    assert torch.equal(explainer(X, 0), expected)


@pytest.mark.parametrize(
    ("choose", "error", "message"),
    [
        (lambda out: out, ValueError, r"given as output= returned 2 tensors \(scores, hidden\): return the one tensor"),
        (lambda out: 3, ValueError, "given as output= returned int without a tensor"),
        (lambda out: None, ValueError, "given as output= returned NoneType without a tensor"),
        (lambda out: out["logits"], fastlrp.CaptureError, "given as output= failed on what the model .* KeyError"),
        (lambda out: out.logits, fastlrp.CaptureError, "given as output= failed .*AttributeError"),
        (lambda out: out["scores"][:, 77], fastlrp.CaptureError, "given as output= failed .*IndexError"),
        (lambda out: out["scores"].sum(), fastlrp.UnsupportedOperationError, "sum"),
        (lambda out: torch.ones(3), fastlrp.CaptureError, "does not depend on its input"),
        (lambda out: out["scores"] * (1 if out["scores"].sum() > 0 else 2), fastlrp.CaptureError, "given as output="),
    ],
)  # fmt: skip
def test_bad_functions(choose, error, message):
    with pytest.raises(error, match=message):
        fastlrp.explain(tagger(), X, 0, output=choose)


def test_an_error_of_the_model_stays_its_own():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("mine")

    with pytest.raises(fastlrp.CaptureError, match=r"the model could not be captured: .*RuntimeError: mine"):
        fastlrp.explain(Broken().eval(), X, 0, output=lambda out: out)
