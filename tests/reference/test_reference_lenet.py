"""LeNet-5 of the LRP Toolbox on ten MNIST digits, every variant in its file.

Conventions that the numbers fix: the bias is in the denominators (b+ with P, b- with N) except for w2; epsilon is
absolute with sgn(0) = +1; a sum pool weighs its inputs by x / sum(x), epsilon added to the plain sum (not to the
sum / sqrt(h w) of its forward); flat and w2 split a pool in equal shares; alpha-beta on a pool has an empty negative
part after a ReLU and multiplies the relevance by alpha; ReLU and Flatten pass.
"""

from __future__ import annotations

import pytest
import torch

from tests import goldens
from tests.reference import lenet
from tests.reference.cases import relative_error

pytestmark = goldens.needs_goldens

# The files are float32; measured: 2.5e-8 for every variant and for the logits. With the other convention of
# any of the above, 3e-2 and more.
TOLERANCE = 5e-8


@pytest.fixture(scope="module")
def network() -> list[lenet.Layer]:
    return lenet.read_network(goldens.path("lrp_toolbox/LeNet-5.txt"))


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return {
        name: goldens.double(array) for name, array in goldens.load("lrp_toolbox/lenet5_mnist_relevance.npz").items()
    }


def test_logits(network: list[lenet.Layer], expected: dict[str, torch.Tensor]) -> None:
    _, logits = lenet.forward(network, lenet.images_to_input(expected["images"]))
    assert relative_error(logits, expected["logits"]) < TOLERANCE
    assert logits.argmax(dim=1).tolist() == expected["labels"].tolist()


@pytest.mark.parametrize("variant", list(lenet.VARIANTS))
def test_relevance(variant: str, network: list[lenet.Layer], expected: dict[str, torch.Tensor]) -> None:
    x = lenet.images_to_input(expected["images"])
    relevance = lenet.relevance(network, x, *lenet.VARIANTS[variant])
    assert relevance.shape == (10, 10, 32, 32)
    assert relative_error(relevance, expected[variant]) < TOLERANCE


def test_every_variant_in_the_file_is_tested(expected: dict[str, torch.Tensor]) -> None:
    assert set(lenet.VARIANTS) == set(expected) - {"images", "labels", "logits"}
