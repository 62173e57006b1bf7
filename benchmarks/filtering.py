"""3x3 convolutions by Winograd's filtering beside oneDNN's: what ``python -m benchmarks.layers --filtering`` prints.

One product of one image for each layer's shape, random weights and an input behind a ReLU. Both have weights that were
laid out once and maps that lie channels-last, as plans call them. Times are processor time of one thread, the least of
repeats in turns; the errors are relative, in the 2-norm, against float64. To hold both to AVX2:

    ONEDNN_MAX_CPU_ISA=AVX2 FASTLRP_ISA=avx2 python -m benchmarks.layers --filtering
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.machine import commit, machine
from benchmarks.one_target import least
from fastlrp.backends.extension import extension
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed, winograd
from fastlrp.plan.products.channels_last import channels_last

GEOMETRY = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

MOST_ERROR = 1e-5
"""A product that differs by more from float64's is wrong."""


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with strides of 1 and a border of zeros; ``size``: the side of its maps."""

    inputs: int
    outputs: int
    size: int

    def __str__(self) -> str:
        channels = f"{self.inputs}" if self.inputs == self.outputs else f"{self.inputs} to {self.outputs}"
        return f"{channels}, {self.size}"


LAYERS = tuple(
    Layer(*shape)
    for shape in (
        (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28), (512, 512, 28),
        (512, 512, 14), (64, 64, 56), (128, 128, 28), (256, 256, 14),
    )
)  # fmt: skip
"""Those of VGG-16, then of ResNet-18."""

COLUMNS = (
    tables.Column("channels, size", lambda row: row["layer"], number=False),
    *(tables.Column(name, lambda row, name=name: row["ms"][name], "{:#.3g}") for name in ("oneDNN", "filtering")),
    tables.Column("times as fast", lambda row: row["ms"]["oneDNN"] / row["ms"]["filtering"], "{:.2f}"),
    tables.Column("error of oneDNN", lambda row: _short(row["error"]["oneDNN"])),
    tables.Column("error of the filtering", lambda row: _short(row["error"]["filtering"])),
)


def _short(error: float) -> str:
    """``8.9e-7``."""
    return f"{error:.1e}".replace("e-0", "e-")


def measured(layer: Layer, repeats: int) -> tables.Row:
    """Milliseconds and errors of both.

    Raises:
        AssertionError: if one of them is wrong.
    """
    torch.manual_seed(0)
    weight = channels_last(torch.randn(layer.outputs, layer.inputs, 3, 3))
    x = channels_last(torch.randn(1, layer.inputs, layer.size, layer.size).relu())
    ways = {
        "oneDNN": packed.Packed(lambda: weight, GEOMETRY),
        "filtering": winograd.Winograd(lambda: weight, GEOMETRY),
    }
    right = torch.conv2d(x.double(), weight.double(), padding=1)
    error = {name: _error(way(x), right) for name, way in ways.items()}
    for name, found in error.items():
        who = "the filtering" if name == "filtering" else name
        assert found <= MOST_ERROR, f"{layer}: {who} differs from float64 by {found:.1e}"
    del right
    seconds = least([lambda way=way: way(x) for way in ways.values()], repeats)
    return {
        "layer": str(layer),
        "ms": {name: each * 1e3 for name, each in zip(ways, seconds, strict=True)},
        "error": error,
        "taken": winograd.pays(GEOMETRY, weight, (layer.size, layer.size)),
    }


def _error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


def print_table(repeats: int) -> None:
    """Measure all layers on one thread, and print a table in Markdown with a line that says how it was made."""
    if packed._operations() is None or winograd._kernel() is None:
        raise SystemExit("--filtering needs the extension, a CPU with AVX2 or AVX-512 and a PyTorch with oneDNN")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [measured(layer, repeats) for layer in LAYERS]
        made = f"{machine()}, {extension().isa()}, PyTorch {torch.__version__}, commit {commit()}"
    finally:
        torch.set_num_threads(threads)
    left = [row["layer"] for row in rows if not row["taken"]]
    note = f" Plans leave out: {'; '.join(left)}." if left else ""
    print(f"{tables.table(COLUMNS, rows)}\n\nMilliseconds of processor time, the least of {repeats}; {made}.{note}")
