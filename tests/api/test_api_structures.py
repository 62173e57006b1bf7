"""Models that return or take more than one tensor."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer
from fastlrp.capture import structure as outputs
from tests.api.models import relative_error, samples

TIGHT = 1e-12
Pair = collections.namedtuple("Pair", "logits hidden")


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Any = None
    steps: int = 3


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Tensor
    hidden: Any = None


class Many(nn.Module):
    """(B, 4) -> logits (B, 3) and hidden (B, 5), packed in some way."""

    def __init__(self, pack) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.hidden, self.head, self.pack = nn.Linear(4, 5), nn.Linear(5, 3), pack

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x).relu()
        return self.pack(self.head(hidden), hidden)


PACKS = {
    "tuple": (lambda y, h: (y, h), ("0", "1")),
    "list": (lambda y, h: [y, h], ("0", "1")),
    "dict": (lambda y, h: {"logits": y, "hidden": h}, ("logits", "hidden")),
    "nested": (lambda y, h: {"logits": y, "more": [None, (h, "text")]}, ("logits", "more.1.0")),
    "named": (lambda y, h: Pair(y, h), ("logits", "hidden")),
    "dataclass": (lambda y, h: Answer(y, h), ("logits", "hidden")),
    "frozen": (lambda y, h: Frozen(y, (h,)), ("logits", "hidden.0")),
    "ordered": (lambda y, h: collections.OrderedDict(logits=y, hidden=h), ("logits", "hidden")),
}


def tensors(found: Any) -> list[Tensor]:
    collected: list[Tensor] = []
    outputs.flatten(found, collected)
    return collected


@pytest.mark.parametrize("pack", PACKS)
def test_each_output(pack):
    make_output, names = PACKS[pack]
    model, x = Many(make_output).double().eval(), samples("mlp", 3)
    plain = [Many(lambda y, h: y), Many(lambda y, h: h)]
    for position, name in enumerate(names):
        expected = Explainer(plain[position].double().eval(), "gamma")(x, "all")
        for output in (name, position):
            with Explainer(model, "gamma", output=output).forward(x) as record:
                assert relative_error(record.relevance("all"), expected) <= TIGHT
                own = model(x)
                assert type(record.output) in (type(own), dict)
                for found, wanted in zip(tensors(record.output), tensors(own), strict=True):
                    assert relative_error(found, wanted.detach()) <= TIGHT
                assert not any(isinstance(leaf, outputs.Leaf) for leaf in tensors(record.output))
                assert record.scores.shape == (3, 3 if position == 0 else 5)


def test_the_output_is_packed_as_the_model_packs_it():
    x = samples("mlp", 3)
    model = Many(lambda y, h: Answer(y, {"one": h, "none": None}, steps=7)).double().eval()
    first = Explainer(model, "gamma", output="logits").forward(x).output
    second = Explainer(model, "gamma", output="hidden.one").forward(2 * x).output
    assert isinstance(first, Answer)
    assert first.steps == 7
    assert first.hidden["none"] is None
    assert relative_error(first.logits, model(x).logits.detach()) <= TIGHT, "not overwritten by the second record"
    assert relative_error(second.hidden["one"], model(2 * x).hidden["one"].detach()) <= TIGHT
    named = Explainer(Many(Pair).double().eval(), "gamma", output="hidden").forward(x).output
    assert isinstance(named, Pair)
    assert named.logits.shape == (3, 3)


@pytest.mark.parametrize("pack", PACKS)
def test_flatten_and_rebuild(pack):
    make_output, names = PACKS[pack]
    own = make_output(torch.randn(2, 3), torch.randn(2, 5))
    found: list[Tensor] = []
    structure = outputs.flatten(own, found)
    assert outputs.leaf_names(structure) == list(names)
    assert all(a is b for a, b in zip(tensors(outputs.rebuild(structure, found)), found, strict=True))


def test_a_bare_tensor_has_no_name():
    found: list[Tensor] = []
    assert outputs.leaf_names(outputs.flatten(torch.zeros(2), found)) == [""]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, r"the model returns 2 tensors \(logits, hidden\): name one with output="),
        ("scores", "output='scores' is not one of the model's outputs: logits, hidden"),
        (2, "output=2 is not one of the model's outputs: logits, hidden"),
        (-1, "output=-1 is not one of the model's outputs: logits, hidden"),
        ("0", "output='0' is not one of the model's outputs: logits, hidden"),
    ],
)
def test_which_output(output, message):
    with pytest.raises(ValueError, match=message):
        Explainer(Many(Answer).eval(), "gamma", output=output)(torch.randn(2, 4), 0)


def test_one_output_among_other_things_needs_no_name():
    x = samples("mlp")
    model = Many(lambda y, h: (y, None, {"loss": None})).double().eval()
    with Explainer(model, "gamma").forward(x) as record:
        assert record.output[1] is None
        assert record.output[2] == {"loss": None}
        assert record.relevance("all").shape == (2, 3, 4)


def test_an_output_name_where_there_is_one_tensor():
    with pytest.raises(ValueError, match="output='logits' is not one of the model's outputs: a bare tensor"):
        Explainer(Many(lambda y, h: y).eval(), "gamma", output="logits")(torch.randn(2, 4), 0)


def test_keyword_inputs_with_integers_and_flags():
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor, kind: Tensor, scale: float = 1.0) -> Tensor:
            return self.head((x + self.table(kind)) * scale)

    torch.manual_seed(0)
    model = Embedded().double().eval()
    x, kind_of = samples("mlp"), torch.tensor([3, 6])
    explainer = Explainer(model, "lrp0")
    for scale in (1.0, 2.0):
        found = explainer({"x": x, "kind": kind_of, "scale": scale}, "all", initial="one")
        assert set(found) == {"x", "kind"}
        y = model(x, kind_of, scale).detach()
        expected = (scale * x.unsqueeze(1) * model.head.weight.detach()) / y.unsqueeze(2)
        assert relative_error(found["x"], expected) <= TIGHT, "the bias keeps its share"
        rows = model.table(kind_of).detach()
        of_rows = (scale * rows.unsqueeze(1) * model.head.weight.detach()).sum(2) / y
        assert relative_error(found["kind"], of_rows) <= TIGHT
