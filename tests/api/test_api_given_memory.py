"""Memory that a caller gives for results, and inputs, targets and groups that hold no numbers one could use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer, groups
from fastlrp.run.shared_memory import share_entries
from tests.api.models import samples, shared


def in_a_buffer() -> tuple[Tensor, Tensor]:
    """A result's memory, of which the place of the first target is the input."""
    x = samples("convnet")
    buffer = torch.zeros(len(x), 4, *x.shape[1:], dtype=x.dtype)
    buffer[:, 0] = x
    return buffer, buffer[:, 0]


def explainer() -> Explainer:
    return shared("convnet")


def test_results_are_not_written_over_the_input() -> None:
    """The second target would be multiplied by what the first one left: off by as much as it is large."""
    buffer, x = in_a_buffer()
    before = buffer.clone()
    with pytest.raises(ValueError, match="out for 'input' lies in the memory of the input, the output or the targets"):
        explainer()(x, [0, 1, 2, 3], out=buffer)
    assert torch.equal(buffer, before)


def test_results_are_not_written_over_targets_and_one_another() -> None:
    x = samples("convnet")
    given = torch.rand(len(x), 2, 5, dtype=x.dtype)
    with pytest.raises(ValueError, match="out for 'output' lies in the memory of the input, the output or the targets"):
        explainer()(x, given, layers=["0"], out={"output": given})
    both = torch.zeros(len(x), 2, 8, 8, 8, dtype=x.dtype)
    with pytest.raises(ValueError, match="out for 'input' lies in the memory of that for '0'"):
        explainer()(x, [0, 1], layers=["0"], out={"0": both, "input": both[:, :, :3]})


def test_memory_that_only_lies_between_is_taken() -> None:
    x = samples("convnet")
    buffer = torch.zeros(len(x), 3, *x.shape[1:], 2, dtype=x.dtype)
    buffer[:, 0, ..., 0] = x
    found = explainer()(buffer[:, 0, ..., 0], [0, 1, 2], out=buffer[..., 1])
    assert torch.equal(found, explainer()(x, [0, 1, 2]))


def test_share_entries() -> None:
    t = torch.zeros(4, 6)
    assert share_entries(t, t[1:, 2:])
    assert share_entries(t[:, ::2], t.flatten()[6:7])
    assert not share_entries(t[:, ::2], t[:, 1::2])
    assert not share_entries(t[:2], t[2:])
    assert not share_entries(t[:0], t)
    assert not share_entries(t, t.clone())
    assert share_entries(t, torch.from_numpy(t.numpy()[1:]))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(2, 1, 3, 8, 8, device="meta"), r"out for 'input' is on meta.* torch.empty\(\(2, 1, 3, 8, 8\)\)"),
        (torch.zeros(2, 1, 3, 8, 8).to_sparse(), "out for 'input' is torch.sparse_coo: give a dense tensor"),
        (np.zeros((2, 1, 3, 8, 8), np.float32)[::-1], r"strides \(-768, .* give np.empty\(\(2, 1, 3, 8, 8\)"),
        (np.zeros((2, 1, 3, 8, 8), ">f4"), "array of >f4 .* which PyTorch cannot write to: give np.empty"),
        (np.zeros((2, 1, 3, 8, 8), np.longdouble), "array of float128 .* which PyTorch cannot write to: give np.empty"),
    ],
)
def test_memory_that_cannot_be_written(out: Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        explainer()(samples("convnet"), 0, out=out)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.ones(1, 5, device="meta"), "targets are on meta, the model's output is on cpu"),
        (torch.ones(2, 1, dtype=torch.long, device="meta"), "targets are on meta, a device without numbers"),
        (torch.ones(1, 5).to_sparse(), "targets is torch.sparse_coo: give a dense tensor"),
    ],
)
def test_targets_without_numbers(targets: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        explainer()(samples("convnet"), targets)


def masked() -> np.ndarray:
    x = samples("convnet").numpy()
    return np.ma.masked_array(x, x > 0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (masked(), r"x is a masked array, .* give array.filled\("),
        ({0: samples("convnet")}, "x is a dict with the key 0: its keys are names of the model's arguments"),
    ],
)
def test_inputs_that_are_more_than_numbers(x: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        explainer()(x, 0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    x = torch.nested.nested_tensor(list(samples("convnet")), layout=layout)
    with pytest.raises(TypeError, match=r"x is a nested tensor: .* use x.to_padded_tensor"):
        explainer()(x, 0)


def test_a_masked_array_without_a_mask_is_an_array() -> None:
    x = samples("convnet")
    assert torch.equal(explainer()(np.ma.masked_array(x.numpy()), 0), explainer()(x, 0))


def test_weights_of_groups_are_finite() -> None:
    with pytest.raises(ValueError, match="groups as weights contain NaN or infinity"):
        explainer()(samples("convnet"), 0, groups=torch.full((2, 3, 8, 8), torch.nan))


@pytest.mark.parametrize("direction", ["down", "up", "middle", "auto"])
@pytest.mark.parametrize("targets", [0, "all", "top2"])
def test_groups_of_no_sample(direction: str, targets: object) -> None:
    found = explainer()(samples("convnet")[:0], targets, groups=groups.patches(4), direction=direction)
    assert found.shape == (0, {0: 1, "all": 5, "top2": 2}[targets], 4)


class Returns(nn.Module):
    """A linear layer, and whatever is made of its output."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda h: None, "the model returns no tensor, .*: return the scores"),
        (lambda h: ("scores", 3), "the model returns no tensor, .*: return the scores"),
        (lambda h: h[:, :0], r"target 0 is out of range: the output \(2, 0\) has no class"),
    ],
)
def test_models_without_scores(make: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        Explainer(Returns(make).eval())(torch.rand(2, 4), 0)


def test_no_composite_at_all() -> None:
    with pytest.raises(TypeError, match=r"composite must be a name or a Composite, got NoneType$"):
        Explainer(nn.Linear(4, 3), None)  # type: ignore[arg-type]
