"""What the CUDA product of shared sparsity refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.emulated import emulated
from tests.cuda.sparse_conv_cases import KINDS, Case
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401
from tests.sparse.cases import Layer


def call(**changed: Any) -> Any:
    """A valid call, apart from what is changed."""
    layer = Layer(4, 5, (6, 7), 3, padding=1)
    case = Case(layer, KINDS["float32"], 9)
    arguments: dict[str, Any] = {
        "arriving": case.arriving, "batch": 2, "targets": 9, "coefficients": case.coefficients,
        "weights": [emulated().sparse_pack(layer.canonical(w)) for w in case.weights], "channels_per_group": [5, 4],
        "leaving": case.leaving, "input_size": [6, 7], "output_size": [6, 7], "kernel_size": [3, 3], "stride": [1, 1],
        "padding": [1, 1], "dilation": [1, 1], "transposed": False, "channels": None, "factors": [], "initial": [],
        "other": None,
    }  # fmt: skip
    for name, change in changed.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    return emulated().sparse_conv_relevance(**arguments)


def test_the_call_is_valid():
    assert call().shape[1] == 16
    assert call(channels=4).shape == (2, 9, 4, 6, 7)


MAP = torch.ones(2, 5, 6, 7)
FACTOR = torch.ones(2, 4, 6, 7)
MISTAKES = [
    (ValueError, "other is for the CPU, on CUDA two products cost no more than one", {"other": MAP}),
    (ValueError, "expected at most 2 products, got 3", {"coefficients": lambda c: 3 * c, "weights": lambda w: 3 * w}),
    (ValueError, "expected a coefficient for each weight", {"coefficients": lambda c: 2 * c}),
    (ValueError, "expected a coefficient for each weight", {"coefficients": [], "weights": []}),
    (ValueError, "channels per group on both sides", {"channels_per_group": [5]}),
    (ValueError, "channels per group do not fit the packed weight", {"channels_per_group": [4, 5]}),
    (ValueError, "weights must be packed by sparse_pack", {"weights": [torch.ones(5, 4, 3, 3)]}),
    (ValueError, "weights must be packed by sparse_pack", {"weights": [torch.ones(5, 4)]}),
    (ValueError, "weights must be packed by sparse_pack", {"kernel_size": [3, 2]}),
    (ValueError, "all weights must be contiguous", {"weights": lambda w: [w[0].transpose(2, 3).contiguous().mT]}),
    (TypeError, "weight must be Float, got Double", {"weights": lambda w: [w[0].double()]}),
    (TypeError, "coefficient must be Float, got Half", {"coefficients": [MAP.half()]}),
    (ValueError, r"coefficient must have shape \(B, Co, \*S'\), got \[2, 5, 6, 6\]", {"coefficients": [MAP[..., :6]]}),
    (ValueError, "coefficient must have shape", {"coefficients": [MAP[:, :4]]}),
    (ValueError, "targets must not be negative, got -1", {"targets": -1}),
    (ValueError, "values must be rows of at least 17 targets", {"targets": 17}),
    (ValueError, "batch must not be negative, got -1", {"batch": -1}),
    (ValueError, "coefficient must have shape", {"batch": 3}),
    (ValueError, "patterns have 84 and 84 positions, sizes ask for 84 and 72", {"input_size": [6, 6]}),
    (ValueError, "one entry per spatial axis", {"stride": [1]}),
    (ValueError, "stride, dilation and kernel size must be at least 1", {"stride": [0, 1]}),
    (ValueError, "channels must divide the input channels", {"channels": 3}),
    (ValueError, "channels must divide the input channels", {"channels": 0}),
    (ValueError, "with a factor for each fold", {"channels": 2, "factors": [FACTOR[:, :2]]}),
    (ValueError, r"factor must have shape \(B, channels", {"channels": 4, "factors": [FACTOR[:, :3]]}),
    (ValueError, "factors belong to a dense result", {"factors": [FACTOR]}),
    (TypeError, "values must be float16, bfloat16, float32 or float64, got Int",
     {"arriving": lambda a: (a[0].int(), *a[1:])}),
    (TypeError, "a pattern has int64 offsets and int32 channels", {"leaving": lambda p: (p[0].int(), p[1])}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "changed"), MISTAKES)
def test_mistakes(error, message, changed):
    with pytest.raises(error, match=f"sparse_conv_relevance: .*({message})"):
        call(**changed)


def test_what_sums_begin_with():
    case = Case(Layer(4, 5, (6, 7), 3, padding=1), KINDS["float32"], 9)
    values = torch.ones(len(case.leaving[1]), 16)
    begin = (values, None, *case.leaving, None)
    for initial, channels in (([begin, begin], None), ([begin], 4)):
        with pytest.raises(ValueError, match="a compact result can begin with one register, a dense one with none"):
            call(initial=initial, channels=channels, leaving=case.leaving)
    with pytest.raises(TypeError, match="values must be Float, got Double"):
        call(initial=[(values.double(), *begin[1:])], leaving=case.leaving)


def test_packing():
    with pytest.raises(ValueError, match=r"sparse_pack: weight must have shape \(groups, Co, Ci, taps\), got \[3, 4\]"):
        emulated().sparse_pack(torch.ones(3, 4))
    with pytest.raises(ValueError, match="sparse_pack: weight must have channels on both sides"):
        emulated().sparse_pack(torch.ones(1, 0, 4, 1))
    with pytest.raises(TypeError, match="sparse_pack: weight must be float16, bfloat16, float32 or float64, got Int"):
        emulated().sparse_pack(torch.ones(1, 2, 4, 1).int())
