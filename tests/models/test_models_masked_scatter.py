"""``masked_scatter``: features of an image in the places that the words leave for it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import fastlrp

IDS = torch.tensor([[1, 8, 8, 3], [8, 2, 8, 5], [8, 8, 1, 1]])
PLACE = 8


class Captioned(nn.Module):
    """Words and image features, ``(B, 2, 5)``, in one sequence.

    Args:
        folded: hands features over as one row of all samples; "list": after a list of one tensor for each.
        narrow: the mask has one entry for a whole row.
    """

    def __init__(self, folded: bool | str = False, narrow: bool = False) -> None:
        super().__init__()
        self.words, self.features, self.head = nn.Embedding(9, 4), nn.Linear(5, 4), nn.Linear(4, 3)
        self.folded, self.narrow = folded, narrow

    def forward(self, input_ids: Tensor, image: Tensor) -> Tensor:
        x = self.words(input_ids)
        mask = (input_ids == PLACE).unsqueeze(-1)
        features = self.features(image)
        if self.folded == "list":
            features = torch.cat(list(features), 0)
        elif self.folded:
            features = features.flatten(0, 1)
        x = x.masked_scatter(mask if self.narrow else mask.expand_as(x), features)
        weights = torch.arange(1, 5, dtype=x.dtype).view(1, -1, 1)  # The place counts.
        return self.head(torch.tanh(x * weights).sum(1))


def _image(samples: int = 3) -> Tensor:
    return torch.randn(samples, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("folded", [False, True, "list"])
def test_each_place_hands_on_to_its_own_entry(folded: bool | str, narrow: bool) -> None:
    torch.manual_seed(0)
    model = Captioned(folded, narrow).double().eval()
    given = {"input_ids": IDS, "image": _image()}
    explainer = fastlrp.Explainer(model, "gradient", example_inputs=given)
    found = explainer(given, [0, 2], initial="one")
    image = given["image"].clone().requires_grad_()
    scores = model(IDS, image)
    for position, target in enumerate((0, 2)):
        (gradient,) = torch.autograd.grad(scores[:, target].sum(), image, retain_graph=True)
        torch.testing.assert_close(found["image"][:, position], gradient, rtol=1e-12, atol=1e-14)
    assert not found["input_ids"][:, 0][IDS == PLACE].any()  # Overwritten.
    assert bool(found["input_ids"][:, 0][IDS != PLACE].all())
    second = {"input_ids": IDS[1:2], "image": given["image"][1:2]}
    alone = explainer(second, [0, 2], initial="one")
    torch.testing.assert_close(alone["image"], found["image"][1:2], rtol=1e-12, atol=1e-14)
    assert explainer.verify(given, [0, 2]).ok


@pytest.mark.parametrize("folded", [False, "list"])
def test_entries_are_not_taken_from_another_sample(folded: bool | str) -> None:
    model = Captioned(folded).double().eval()
    explainer = fastlrp.Explainer(model, "gradient", example_inputs={"input_ids": IDS, "image": _image()})
    uneven = torch.tensor([[1, 8, 2, 3], [8, 8, 8, 5], [8, 8, 1, 1]])
    expected = "masked_scatter: the mask has 4 places in sample 0, and 8 entries are of that sample"
    with pytest.raises(ValueError, match=re.escape(expected)):
        explainer({"input_ids": uneven, "image": _image()}, [0])


def test_a_last_sample_may_have_entries_left() -> None:
    """Nobody stands behind it."""
    torch.manual_seed(0)
    model = Captioned().double().eval()
    explainer = fastlrp.Explainer(model, "gradient", example_inputs={"input_ids": IDS, "image": _image()})
    given = {"input_ids": torch.tensor([[1, 8, 2, 3]]), "image": _image(1)}
    found = explainer(given, [0], initial="one")["image"]
    assert bool(found[:, :, 0].any())
    assert not found[:, :, 1].any()
    with explainer.forward(given) as record:
        torch.testing.assert_close(record.scores, model(**given), rtol=1e-12, atol=1e-14)


class Listed(Captioned):
    """Gives the features back, a tensor for each sample."""

    def forward(self, input_ids: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor]]:  # type: ignore[override]
        return super().forward(input_ids, image), list(self.features(image))


def test_a_list_with_an_entry_for_each_sample() -> None:
    given = {"input_ids": IDS, "image": _image()}
    expected = "gives 4 tensors for 3 samples and 2 for one, a list with an entry for each sample: wrap it in a module"
    with pytest.raises(fastlrp.CaptureError, match=expected):
        fastlrp.Explainer(Listed("list").double().eval(), "gradient", example_inputs=given, output=0)
