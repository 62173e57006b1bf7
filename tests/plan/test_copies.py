"""Copies found by the numbers of their entries: the inverse is what autograd gives, the copy the operation itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.kinds import copies, places

# By name: sizes of a sample, the operation on (B, *sizes), whether it follows a pattern of axes.
COPIES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], bool]] = {
    "expand": ((2, 1, 3), lambda x: x.expand(-1, 2, 4, 3), True),
    "repeat": ((2, 3), lambda x: x.repeat(1, 3, 2), True),
    "repeat_interleave": ((2, 3), lambda x: x.repeat_interleave(3, 1), True),
    "every other": ((5, 4), lambda x: x[:, 1::2, ::3], True),
    "pixel_shuffle": ((8, 2, 3), lambda x: F.pixel_shuffle(x, 2), True),
    "nearest": ((2, 2, 3), lambda x: F.interpolate(x, scale_factor=(2, 3)), True),
    "diagonal": ((4, 4), lambda x: x.diagonal(dim1=1, dim2=2), True),
    "a pad of two axes": ((2, 3, 3), lambda x: F.pad(x, (1, 2, 0, 1), value=7.0), True),
    "a pad and a cut": ((3, 4), lambda x: F.pad(x, (-1, 2)), True),
    "windows apart": ((6, 4), lambda x: x.unfold(1, 2, 3), True),
    "windows that overlap": ((6, 4), lambda x: x.unfold(1, 3, 2), False),
    "roll": ((6, 4), lambda x: x.roll(2, 1), False),
    "flip": ((6, 4), lambda x: x.flip(1), False),
    "reflection": ((2, 5), lambda x: F.pad(x, (2, 1), mode="reflect"), False),
    "below the diagonal": ((4, 4), lambda x: x.tril(), False),
    "a list of places": ((5, 4), lambda x: x[:, [3, 0, 3]], False),
    "one number": ((), lambda x: x.view(-1, 1).expand(-1, 3), True),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("batch", [2, 0])
def test_a_copy_and_its_inverse(name, batch):
    sizes, operation, follows = COPIES[name]
    numbers = torch.arange(1.0, 1 + math.prod(sizes)).view(1, *sizes)
    places = operation(numbers)[0].long() - 1
    places = torch.where(operation(-numbers)[0] == -places - 1, places, -1)
    found = copies.by_digits(places, sizes)
    assert (found is not None) is follows
    for copied in (found, copies.by_places(places, sizes)):
        if copied is None:
            continue
        x = torch.randn(batch, 3, *sizes, dtype=torch.float64, requires_grad=True)
        y = operation(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        y = y - operation(torch.zeros_like(x).flatten(0, 1)).unflatten(0, x.shape[:2])  # Less what it fills in.
        relevance = torch.randn(y.shape[::-1], dtype=y.dtype).permute(*range(y.dim())[::-1])
        expected = torch.autograd.grad(y, x, relevance)[0] if batch else x.detach()
        torch.testing.assert_close(copied.back(relevance), expected, rtol=1e-14, atol=1e-15)
        assert torch.equal(copied.copy(x), y)
        counts = torch.autograd.grad(operation(x[:, 0]).sum(), x)[0][:, 0] if batch else torch.ones(())
        assert copied.once is bool((counts <= 1).all()) or not batch


@pytest.mark.parametrize(
    ("operation", "window"),
    [
        (lambda x: x[:, 2], (0, 2, 1, True, 1)),
        (lambda x: x.unbind(2)[1], (1, 1, 1, True, 1)),
        (lambda x: x.split([1, 3, 1], 3)[1], (2, 1, 3, False, 1)),
        (lambda x: x[..., 1::2], (2, 1, 2, False, 2)),
        (lambda x: x[:, :, ::3], (1, 0, 2, False, 3)),
        (lambda x: x.flip(3)[..., ::2], None),
        (lambda x: x[:, 1:3, 0], None),
        (lambda x: x.transpose(1, 2), None),
    ],
)
def test_what_is_taken_of_an_axis(operation, window):
    sizes = (3, 4, 5)
    taken = copies.by_taking(operation(torch.arange(60).view(1, *sizes))[0], sizes)
    assert (None if taken is None else dataclasses.astuple(taken)) == window
    if taken is not None:
        x = torch.randn(2, 1, *sizes, dtype=torch.float64, requires_grad=True)
        y = taken.take(x)
        (expected,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(taken.inverse(sizes)(torch.ones_like(y)), expected)
        numbers = torch.arange(y[0].numel())
        assert torch.equal(places.window(sizes, taken)(numbers), operation(torch.arange(60).view(1, *sizes)).flatten())
