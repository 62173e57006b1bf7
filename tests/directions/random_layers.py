"""Layers of the random graphs: with weights, norms, pools, attention, and modules that are called twice."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.directions.random_ops import Made, Make, Op


def _linear(r: random.Random, sizes: tuple[int, ...]) -> Made:
    out = r.choice([sizes[-1], r.randrange(1, 6)])
    return lambda self, x: self.layer(x), {"layer": nn.Linear(sizes[-1], out, bias=r.random() < 0.7)}


def _conv(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 2:
        return None
    out, size = r.choice([sizes[0], r.randrange(1, 5)]), r.randrange(1, 3)
    bias, padding, stride = r.random() < 0.7, r.randrange(2), r.choice([1, 1, 2])
    layer = nn.Conv1d(sizes[0], out, size, stride=stride, padding=padding, bias=bias)
    return lambda self, x: self.layer(x), {"layer": layer}


def _batch_norm(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 2:
        return None
    out = r.randrange(1, 4)
    norm = nn.BatchNorm1d(out)
    for t in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(t, 0.5, 0.5)
    conv = nn.Conv1d(sizes[0], out, 1, bias=r.random() < 0.5)
    return lambda self, x: self.norm(self.conv(x)), {"conv": conv, "norm": norm}


def _max_pool(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 3:
        return None
    stride = r.randrange(1, 3)
    return lambda self, x: F.max_pool1d(x, 2, stride), {}


def _avg_pool(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[1] < 3:
        return None
    stride, padding = r.randrange(1, 3), r.randrange(2)
    return lambda self, x: F.avg_pool1d(x, 2, stride, padding), {}


def _image(r: random.Random, sizes: tuple[int, ...]) -> Made:
    """Operations on maps of two axes, one of them made for the purpose."""
    if len(sizes) != 2 or sizes[1] < 2:
        return None
    channels = sizes[0]
    layer = r.choice([
        nn.Conv2d(channels, 2, (1, 2), padding=(0, 1)), nn.ConvTranspose2d(channels, 1, (2, 1)),
        nn.MaxPool2d((1, 2), 1), nn.AvgPool2d((1, 2), 1), nn.AdaptiveAvgPool2d((1, 2)), nn.AdaptiveMaxPool2d((1, 1)),
        nn.Upsample(scale_factor=(1, 1.5), mode="bilinear"), nn.Conv2d(channels, channels, 1, groups=channels),
        nn.GroupNorm(1, channels), nn.Upsample(scale_factor=(2, 1)), nn.LPPool2d(2, (1, 2)),
    ])  # fmt: skip
    return lambda self, x: self.layer(x.unsqueeze(2)).flatten(2), {"layer": layer}


def _layer_norm(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if sizes[-1] < 2:
        return None
    norm = nn.LayerNorm(sizes[-1])
    nn.init.normal_(norm.weight, 1, 0.3)
    nn.init.normal_(norm.bias, 0, 0.3)
    return lambda self, x: self.norm(x), {"norm": norm}


def _rms_norm(r: random.Random, sizes: tuple[int, ...]) -> Made:
    return (lambda self, x: self.norm(x), {"norm": nn.RMSNorm(sizes[-1])}) if sizes[-1] > 1 else None


def _twice(r: random.Random, sizes: tuple[int, ...]) -> Made:
    layer: nn.Module = nn.Linear(sizes[-1], sizes[-1], bias=r.random() < 0.7)
    if r.random() < 0.5:
        layer = nn.Sequential(layer, r.choice([nn.ReLU(), nn.GELU()]))
    form = r.randrange(2)
    if form == 0:
        return lambda self, x: self.layer(self.layer(x)), {"layer": layer}
    return lambda self, x: self.layer(x) + self.layer(x.flip(1)), {"layer": layer}


def _residual(r: random.Random, sizes: tuple[int, ...]) -> Made:
    layer = nn.Linear(sizes[-1], sizes[-1], bias=r.random() < 0.7)
    return lambda self, x: x + self.layer(x).relu(), {"layer": layer}


def _attention(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[-1] < 2:
        return None
    width, causal, eager = sizes[-1], r.random() < 0.5, r.random() < 0.4
    parts = {name: nn.Linear(width, 2) for name in "qkv"}

    def attend(self: Op, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        if eager:
            return (torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, -1) @ v).squeeze(1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).squeeze(1)

    return attend, parts


def _multi_head(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2 or sizes[-1] % 2:
        return None
    layer = nn.MultiheadAttention(sizes[-1], 2, batch_first=True)
    return lambda self, x: self.layer(x, x, x, need_weights=False)[0], {"layer": layer}


def _recurrent(r: random.Random, sizes: tuple[int, ...]) -> Made:
    if len(sizes) != 2:
        return None
    kind = r.choice([nn.LSTM, nn.GRU])
    return lambda self, x: self.cell(x)[0], {"cell": kind(sizes[1], 2, batch_first=True)}


def _activation(r: random.Random, sizes: tuple[int, ...]) -> Made:
    function = r.choice([torch.relu, torch.relu, F.gelu, torch.tanh, F.silu, F.leaky_relu])
    return lambda self, x: function(x), {}


LAYERS: dict[str, tuple[Make, float]] = {
    "activation": (_activation, 3),
    "identity": (lambda r, s: (lambda self, x: self.same(x), {"same": r.choice([nn.Identity(), nn.Dropout(0.3)])}), 1),
    "linear": (_linear, 3),
    "conv": (_conv, 2),
    "max_pool": (_max_pool, 1),
    "avg_pool": (_avg_pool, 1),
    "layer_norm": (_layer_norm, 1),
    "rms_norm": (_rms_norm, 0.5),
    "twice": (_twice, 1.5),
    "residual": (_residual, 1),
    "attention": (_attention, 1),
    "multi_head": (_multi_head, 0.5),
    "batch_norm": (_batch_norm, 1),
    "recurrent": (_recurrent, 0.3),
    "image": (_image, 1.5),
}
"""Of one value, each with how often it is taken."""
