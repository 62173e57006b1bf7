"""The way up for alive neurons only: the CUDA product with input and output exchanged and the coefficients of what
leaves, emulated, against products in float64 of the operands that it rounds, and against the CPU's kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import ORDERS, emulated, order
from tests.cuda.sparse_conv_cases import CPU, KINDS, Case, Kind, allowing_tf32, pattern, rows_of
from tests.fixtures import one_thread, poisoned, seeded  # noqa: F401
from tests.ops.cases import channels_last, reversed_memory, with_gaps
from tests.sparse.cases import Layer
from tests.sparse.test_sparse_kernels import LAYERS

TILES = {
    "one_position_each": (Layer(5, 70, (3, 5), 1), 1.0), "two_tiles": (Layer(3, 280, (4, 4), 3, batch=1), 0.6),
    "three_tiles": (Layer(3, 290, (3, 4), 3, batch=1), 1.0), "long_linear": (Layer(1030, 70, ()), 0.5),
    "runs_of_three": (Layer(40, 36, (1, 10), (1, 3), padding=(0, 1), batch=1), 0.9),
    "many_terms": (Layer(130, 20, (2, 3), 3, padding=1, batch=1), 0.5),
    "groups": (Layer(40, 36, (2, 5), 3, padding=1, groups=2, batch=1), 0.5),
    "narrow_stride": (Layer(6, 20, (3, 23), (1, 2), stride=(1, 5)), 0.2),
    "strided_runs": (Layer(6, 20, (2, 4), (1, 3), stride=(1, 4), transposed=True), 0.3),
}  # fmt: skip


def jacobian(layer: Layer, weight: Tensor) -> Tensor:
    """``(Co * S', Ci * S)``: the weight that joins each output with each input, or zero."""
    size = (layer.inputs, *layer.size)
    units = torch.eye(torch.Size(size).numel(), dtype=torch.float64).unflatten(1, size)
    return layer.apply(units, weight.double()).flatten(1).T


class Up:
    """``u_j (W_j t)`` summed over the products, where any ``u_j`` is not zero.

    Cotangents ``t`` are NaN where the layer below is dead, and so are the lanes behind the last group.
    """

    def __init__(
        self, layer: Layer, kind: Kind, count: int, products: int = 1, above: float = 0.5, below: float = 0.5
    ) -> None:
        case = Case(layer, kind, count, products, above, below)
        self.layer, self.kind, self.count, self.case = layer, kind, count, case
        t = torch.randn(layer.batch, count, layer.inputs, *layer.size, dtype=kind.wide).to(kind.dtype)
        self.t = t.masked_fill((case.mask == 0).unsqueeze(1), torch.nan)
        self.arriving, self.leaving = rows_of(self.t, pattern(case.mask)), pattern(*case.coefficients)

    def operand(self, number: Tensor) -> Tensor:
        """As a product sees it; layers with few channels per group are multiplied in the wide type."""
        thin = self.layer.groups > 1 and self.layer.outputs // self.layer.groups < 16
        return number if thin else self.kind.operand(number)

    def expected(self) -> Tensor:
        """``(B, G, Co, *S')`` in float64, of the weights times their coefficients, rounded as one operand."""
        merged = torch.zeros((), dtype=self.kind.wide)
        for weight, coefficient in zip(self.case.weights, self.case.coefficients, strict=True):
            u, joining = coefficient.to(merged.dtype), jacobian(self.layer, weight).to(merged.dtype)
            merged = merged + u.flatten(1).unsqueeze(2) * joining
        values = self.operand(self.t.nan_to_num(0.0).to(self.kind.wide)).double().flatten(2)
        found = values @ self.operand(merged).double().mT
        return found.unflatten(2, (self.layer.outputs, *self.layer.result))

    def call(self, module: Any = None, change: Callable[[Tensor], Tensor] = lambda t: t, **changed: Any) -> Tensor:
        layer, module = self.layer, module or emulated()
        turned = [layer.canonical(w).transpose(1, 2).contiguous() for w in self.case.weights]
        packed = [module.sparse_pack(w) if layer.size else w[0, :, :, 0] for w in turned]
        given = {
            "arriving": self.arriving, "batch": layer.batch, "targets": self.count,
            "coefficients": [change(u) for u in self.case.coefficients], "weights": packed,
            "channels_per_group": list(turned[0].shape[1:3]), "leaving": self.leaving, "input_size": layer.result,
            "output_size": list(layer.size), "kernel_size": layer.each("kernel"), "stride": layer.each("stride"),
            "padding": layer.each("padding"), "dilation": layer.each("dilation"), "transposed": not layer.transposed,
            "channels": None, "factors": [], "initial": [], "other": None, "scales_leaving": True,
        }  # fmt: skip
        with allowing_tf32(self.kind.tf32, self.kind.tf32):
            result: Tensor = module.sparse_conv_relevance(**given | changed)
        return result

    def dense(self, rows: Tensor) -> Tensor:
        """Rows of alive outputs as ``(B, G, Co, *S')``."""
        size = [self.layer.outputs, *self.layer.result]
        assert rows.shape == (len(self.leaving[1]), -(-self.count // 16) * 16)
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        return CPU.sparse_to_dense((rows, None, *self.leaving), self.layer.batch, self.count, size)


def check(up: Up) -> Tensor:
    rows = up.call()
    up.case.close(up.dense(rows), up.expected())
    return rows


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_geometries(name, kind):
    """In one of the orders of threads, with one product or two."""
    number = list(LAYERS).index(name) + list(KINDS).index(kind)
    with order(ORDERS[number % 3], seed=number):
        check(Up(LAYERS[name], KINDS[kind], 33 if kind == "float32" else 7, products=1 + number % 2))


@pytest.mark.parametrize("name", TILES)
def test_tiles(name):
    """More columns than a tile has, more terms than a batch has, runs of several positions: of the outputs here."""
    layer, density = TILES[name]
    number = list(TILES).index(name)
    for kind, products in (("float32", 1 + number % 2), (("tf32", "bfloat16", "float64")[number % 3], 2 - number % 2)):
        check(Up(layer, KINDS[kind], (20, 50, 70)[number % 3], products, above=density, below=0.9))


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["linear", "same", "groups"])
def test_densities(name, kind):
    """Everything dead on one side or both, few alive, all alive."""
    for above, below in itertools.product((0.0, 0.05, 1.0), repeat=2):
        check(Up(LAYERS[name], KINDS[kind], 20, 2, above, below))


@pytest.mark.parametrize("layer", [LAYERS["linear"], LAYERS["same"], TILES["groups"][0], LAYERS["depthwise_dilated"]])
def test_one_alive(layer):
    """A single neuron on either side; what its column meets is one weight or none."""
    for side in ("above", "below"):
        up = Up(layer, KINDS["tf32"], 9, 2, **{side: 0.0})
        masks = up.case.coefficients if side == "above" else [up.case.mask]
        masks[0].flatten()[masks[0].numel() // 2] = 1.5
        if side == "below":
            up.t.copy_(torch.randn(up.t.shape).masked_fill((up.case.mask == 0).unsqueeze(1), torch.nan))
        up.arriving, up.leaving = rows_of(up.t, pattern(up.case.mask)), pattern(*up.case.coefficients)
        assert min(len(up.leaving[1]), len(up.arriving[3])) == 1
        check(up)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["linear", "same", "stride", "groups_of_many", "depthwise", "transposed", "volume"])
def test_as_on_the_cpu(name, dtype):
    """There a product for each weight with coefficients of one, multiplied and added up behind it."""
    up = Up(LAYERS[name], KINDS[dtype], 33, products=2)
    batch, sources = up.layer.batch, []
    for product, coefficient in enumerate(up.case.coefficients):
        turned = up.layer.canonical(up.case.weights[product]).transpose(1, 2)
        weight = CPU.sparse_pack(turned.contiguous()) if up.layer.size else turned[0, :, :, 0]
        ones = [torch.ones_like(up.case.mask)]
        rows = up.call(CPU, coefficients=ones, weights=[weight], scales_leaving=False)
        sources.append((rows, None, *up.leaving, coefficient))
    expected = CPU.sparse_sum(sources, up.leaving, batch, 33)
    up.case.close(up.call()[:, :33], expected[:, :33].double())


@pytest.mark.parametrize("kind", ["float32", "tf32", "float16"])
def test_the_same_every_time_and_from_any_memory(kind):
    for name in ("valid", "depthwise_dilated", "linear"):
        up = Up(LAYERS[name], KINDS[kind], 20, products=2)
        plain = up.call()[:, :20]
        for threads, seed in (("backward", 0), ("random", 1)):
            with order(threads, seed):
                assert torch.equal(up.call()[:, :20], plain)
        for change in (channels_last(1), with_gaps, reversed_memory, lambda t: torch._neg_view(-t)):
            assert torch.equal(up.call(change=change)[:, :20], plain)


def test_one_launch_for_two_products_and_nothing_read_on_the_host():
    module, up = emulated(), Up(LAYERS["same"], KINDS["float32"], 9, products=2)
    up.call()  # looks at patterns that other kernels made
    before = module.launches(), module.reads_on_host()
    up.call()
    assert (module.launches() - before[0], module.reads_on_host() - before[1]) == (1, 0)


def test_no_groups():
    up = Up(LAYERS["same"], KINDS["float32"], 1)
    assert up.call(targets=0).shape == (len(up.leaving[1]), 0)


def test_a_dense_result():
    """Written at once where each alive output has its place."""
    for kind in ("float32", "bfloat16"):
        up = Up(LAYERS["same"], KINDS[kind], 9, products=2)
        assert torch.equal(up.call(channels=up.layer.outputs).to(up.kind.wide), up.dense(up.call()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": [torch.ones(2, 5, 9, 8)]}, r"coefficient must have shape \(B, Ci, \*S\), got \[2, 5, 9, 8\]"),
        ({"coefficients": [torch.ones(2, 7, 9, 7)]}, r"coefficient must have shape \(B, Ci, \*S\)"),
        ({"scales_leaving": False}, r"coefficient must have shape \(B, Co, \*S'\), got \[2, 7, 9, 8\]"),
    ],
)
def test_coefficients_of_the_wrong_side(change, message):
    with pytest.raises(ValueError, match=f"sparse_conv_relevance: {message}"):
        Up(LAYERS["same"], KINDS["float32"], 9).call(**change)


def test_the_cpu_says_what_to_do_instead():
    with pytest.raises(
        ValueError, match="scales_leaving is for CUDA; here give ones, and multiply the result in spars"
    ):
        Up(LAYERS["same"], KINDS["float32"], 9).call(CPU)
