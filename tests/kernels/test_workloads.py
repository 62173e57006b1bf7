"""Shapes that kernels are tuned on: those of models, and a user's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastlrp.backends import dispatch
from fastlrp.tune import attention, space, workloads
from fastlrp.tune.workloads import Workload
from tests.kernels.tuning import shapes

CPU = torch.device("cpu")
CONV = Workload("conv_relevance", 4, 5, (5, 4), 3, padding=1, targets=2)


@pytest.mark.parametrize("quick", [False, True])
def test_standard_shapes_call_every_operation(quick):
    found = workloads.standard(quick)
    assert {w.op for w in found} == set(workloads.OPS)
    assert {*workloads.OPS, *attention.KERNELS.values()} == set(space.KERNELS.values())
    assert {w.targets for w in found} == ({16, 128} if quick else {1, 16, 128, 256})
    assert len(set(found)) == len(found)
    text = "\n".join(map(str, found))
    if not quick:
        for layer in ("3->64 7x7/2 of 224x224", "512->512 3x3 of 14x14", "1024->2048 1x1/2 of 14x14", "25088->4096 u"):
            assert layer in text


@pytest.mark.parametrize("op", workloads.OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments_fit_their_operation(op, dtype):
    layers = [w for w in workloads.standard(targets=[3]) if w.op == op]
    for layer in layers[:1] + layers[-1:]:
        scale = 1 if op == "linear_relevance" else 16
        small = replace(layer, size=tuple(max(n // scale, 4) for n in layer.size), batch=2)
        if op == "linear_relevance":
            small = replace(small, inputs=40, outputs=30)
        elif small.groups == 1:
            small = replace(small, inputs=min(small.inputs, 8), outputs=12)
        arguments = small.arguments(CPU, dtype)
        result = dispatch.select(op, "torch", CPU, dtype).call(*arguments)
        assert result.shape == (2, 3, small.inputs, *small.size)
        assert result.dtype == dtype
        assert torch.isfinite(result).all()
        again = small.arguments(CPU, dtype)
        assert all(torch.equal(a, b) for a, b in zip(arguments, again, strict=True) if isinstance(a, torch.Tensor))


def test_maps_are_channels_last():
    flow, weight, u, v, *_ = replace(CONV, terms="uv").arguments(CPU, torch.float32)
    assert flow.shape == (1, 2, 5, 5, 4)
    assert flow.stride(2) == 1
    assert u.is_contiguous(memory_format=torch.channels_last)
    assert v.is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert 0.3 < float((v == 0).double().mean()) < 0.7


def test_a_users_shapes(tmp_path):
    entry = {"op": "conv_relevance", "inputs": 8, "outputs": 4, "size": [6, 7], "kernel": 3, "targets": 5}
    found = workloads.read(shapes(tmp_path, [entry, {"op": "linear_relevance", "inputs": 3, "outputs": 2}]))
    assert found == [
        Workload("conv_relevance", 8, 4, (6, 7), 3, targets=5),
        Workload("linear_relevance", 3, 2),
    ]
    assert found[0].output_size == (4, 5)


GOOD = {"op": "conv_relevance", "inputs": 8, "outputs": 4, "size": [6, 7]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as JSON"),
        ([], "expected a list of shapes, such as "),
        ({}, "expected a list of shapes"),
        ([3], "shape 0: expected an object with some of op, inputs"),
        ([GOOD, {**GOOD, "dilation": 2}], "shape 1: unknown dilation; expected an object with some of"),
        ([{"op": "conv_relevance"}], "shape 0: inputs, outputs must be given"),
        ([{**GOOD, "inputs": "8"}], "'inputs' must be of type int, got '8'"),
        ([{**GOOD, "signed": 1}], "'signed' must be of type bool, got 1"),
        ([{**GOOD, "op": "pool"}], "'op' must be one of conv_relevance, .* got 'pool'"),
        ([{**GOOD, "terms": "w"}], "'terms' must be one of u, v, uv, got 'w'"),
        ([{**GOOD, "kernel": 0}], "numbers must be at least 1, 'padding' and 'pool' at least 0"),
        ([{**GOOD, "size": [6]}], "'size' must be a height and a width, and left out for linear_relevance"),
        ([{**GOOD, "size": [6, -1]}], "'size' must be a height and a width"),
        ([{**GOOD, "op": "linear_relevance"}], "'size' must be a height and a width, and left out for linear"),
        ([{**GOOD, "groups": 3}], "3 groups do not divide 8 and 4 channels"),
        ([{**GOOD, "kernel": 9}], r"the output of size \(-2, -1\) is empty"),
        ([{**GOOD, "op": "conv_unpooled_relevance"}], "'pool' is the window of the pool after conv_unpooled_relevance"),
        ([{**GOOD, "op": "conv_unpooled_relevance", "pool": 7}], "is empty or smaller than the pool's window"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, content, message):
    path = shapes(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        workloads.read(path)
    assert str(path) in str(caught.value)
