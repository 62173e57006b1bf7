"""The calls that a model makes, as the benchmarks of operations repeat them."""

from __future__ import annotations

import pytest
import torch

from benchmarks import shapes
from fastlrp.backends import dispatch


@pytest.fixture(scope="module")
def calls():
    return shapes.calls("small")


def test_every_layer_is_heard(calls):
    weights = {call.rest[0].shape for call in calls if call.op in ("conv_relevance", "linear_relevance")}
    in_a_box = (16, 2, 3, 3)  # The first layer's two weights of the z-box rule, in one product.
    layers = {(16, 1, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (64, 256), (10, 64)}
    assert layers | {in_a_box} == {tuple(s) for s in weights}
    assert {"pool_max_relevance", "elementwise_coefficients"} <= {call.op for call in calls}
    assert len({str(call) + call.op for call in calls}) == len(calls)
    assert dispatch._callable.__module__ == "fastlrp.backends.dispatch"


def test_repeated_with_any_number_of_targets(calls):
    for call in calls:
        for backend in ("torch", "cpu"):
            if dispatch.reason(backend, call.op, shapes.CPU, torch.float32) is None:
                assert shapes.error(call, backend) < 1e-5
        if call.relevance is not None:
            flow = call.arguments(3)[0]
            assert flow.shape == (1, 3, *call.relevance[0][2:])
            strides = [flow.stride(axis) for axis in call.relevance[1]]
            assert strides == sorted(strides, reverse=True)


def test_a_few_are_the_largest_the_smallest_and_some_between(calls):
    own = sorted(call.size for call in calls if call.op == "conv_relevance")
    some = [call.size for call in shapes.few(calls, 2) if call.op == "conv_relevance"]
    assert some == [own[0], own[-1]]
    assert len(shapes.few(calls, 1)) == len({call.op for call in calls})


def test_argument_names():
    assert shapes.argument_names("pool_max_relevance") == ["relevance", "index", "scale", "input_size"]
    names = shapes.argument_names("conv_relevance")
    assert names[:6] == ["relevance", "weight", "u", "v", "input", "weight_positive"]
    assert names[-4:] == ["output_padding", "groups", "signed", "multiply"]
