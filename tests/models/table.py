"""Small modules, one per layer, function or tensor method that models use, for the test of all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.cases import Body, Written, constant
from tests.models.table_constants import CONSTANTS
from tests.models.table_writes import IN_PLACE

# Made by hand: what stands between a linear layer and the sum that is explained, by the shape that it takes.
VECTOR, SEQUENCE, IMAGE, VOLUME = (8,), (3, 8), (4, 6, 6), (4, 4, 4, 4)

LAYERS: dict[tuple[int, ...], list[Callable[[], nn.Module]]] = {
    VECTOR: [
        lambda: nn.Identity(), lambda: nn.ReLU(), lambda: nn.ReLU6(), lambda: nn.ELU(), lambda: nn.SELU(),
        lambda: nn.CELU(), lambda: nn.GELU(), lambda: nn.GELU("tanh"), lambda: nn.SiLU(), lambda: nn.Mish(),
        lambda: nn.Sigmoid(), lambda: nn.Tanh(), lambda: nn.Softplus(), lambda: nn.Softsign(), lambda: nn.Softmax(-1),
        lambda: nn.LogSoftmax(-1), lambda: nn.Softmin(-1), lambda: nn.LogSigmoid(), lambda: nn.Hardtanh(),
        lambda: nn.Hardswish(), lambda: nn.Hardsigmoid(), lambda: nn.Hardshrink(), lambda: nn.Softshrink(),
        lambda: nn.Tanhshrink(), lambda: nn.Threshold(0.1, 2.0), lambda: nn.LeakyReLU(), lambda: nn.PReLU(),
        lambda: nn.PReLU(8), lambda: nn.RReLU(), lambda: nn.GLU(), lambda: nn.Dropout(), lambda: nn.AlphaDropout(),
        lambda: nn.FeatureAlphaDropout(), lambda: nn.Linear(8, 5), lambda: nn.BatchNorm1d(8), lambda: nn.LayerNorm(8),
        lambda: nn.RMSNorm(8), lambda: nn.GroupNorm(2, 8), lambda: nn.Unflatten(1, (2, 4)), lambda: nn.Flatten(),
        lambda: nn.LSTMCell(8, 5), lambda: nn.GRUCell(8, 5), lambda: nn.RNNCell(8, 5),
        lambda: nn.ReLU(inplace=True), lambda: nn.Hardswish(inplace=True), lambda: nn.Dropout(inplace=True),
    ],
    SEQUENCE: [
        lambda: nn.Conv1d(3, 4, 3), lambda: nn.ConvTranspose1d(3, 4, 3), lambda: nn.BatchNorm1d(3),
        lambda: nn.InstanceNorm1d(3), lambda: nn.InstanceNorm1d(3, affine=True), lambda: nn.LayerNorm((3, 8)),
        lambda: nn.MaxPool1d(2), lambda: nn.AvgPool1d(2), lambda: nn.LPPool1d(2, 2), lambda: nn.AdaptiveMaxPool1d(2),
        lambda: nn.AdaptiveAvgPool1d(2), lambda: nn.ReflectionPad1d(1), lambda: nn.ReplicationPad1d(1),
        lambda: nn.ZeroPad1d(1), lambda: nn.ConstantPad1d(1, 0.0), lambda: nn.CircularPad1d(1),
        lambda: nn.LSTM(8, 5, batch_first=True), lambda: nn.GRU(8, 5, batch_first=True),
        lambda: nn.RNN(8, 5, batch_first=True), lambda: nn.LSTM(8, 5), lambda: nn.LSTM(8, 5, 2, bidirectional=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: nn.TransformerEncoderLayer(8, 2, 16),
        lambda: nn.Upsample(scale_factor=2), lambda: nn.Upsample(scale_factor=2, mode="linear"), lambda: nn.Dropout1d(),
    ],
    IMAGE: [
        lambda: nn.Conv2d(4, 3, 3), lambda: nn.Conv2d(4, 4, 2, padding="same"), lambda: nn.ConvTranspose2d(4, 3, 3),
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), lambda: nn.BatchNorm2d(4),
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), lambda: nn.GroupNorm(2, 4),
        lambda: nn.InstanceNorm2d(4), lambda: nn.LocalResponseNorm(2), lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2),
        lambda: nn.LPPool2d(2, 2), lambda: nn.AdaptiveMaxPool2d(2), lambda: nn.AdaptiveAvgPool2d((2, None)),
        lambda: nn.FractionalMaxPool2d(2, 3), lambda: nn.PixelShuffle(2), lambda: nn.PixelUnshuffle(2),
        lambda: nn.ChannelShuffle(2), lambda: nn.Upsample(scale_factor=2, mode="bilinear"), lambda: nn.Unfold(2),
        lambda: nn.UpsamplingNearest2d(scale_factor=2), lambda: nn.UpsamplingBilinear2d(scale_factor=2),
        lambda: nn.ReflectionPad2d(1), lambda: nn.ReplicationPad2d(1), lambda: nn.ZeroPad2d(1),
        lambda: nn.ConstantPad2d(1, 0.5), lambda: nn.CircularPad2d(1), lambda: nn.Dropout2d(), lambda: nn.Softmax2d(),
        lambda: nn.Sequential(nn.Unfold(2), nn.Fold((6, 6), 2)), lambda: nn.LazyConv2d(3, 3),
    ],
    VOLUME: [
        lambda: nn.Conv3d(4, 3, 2), lambda: nn.ConvTranspose3d(4, 3, 2), lambda: nn.BatchNorm3d(4),
        lambda: nn.InstanceNorm3d(4), lambda: nn.MaxPool3d(2), lambda: nn.AvgPool3d(2), lambda: nn.LPPool3d(2, 2),
        lambda: nn.AdaptiveMaxPool3d(2), lambda: nn.AdaptiveAvgPool3d(2), lambda: nn.ReflectionPad3d(1),
        lambda: nn.ReplicationPad3d(1), lambda: nn.ConstantPad3d(1, 0.0), lambda: nn.CircularPad3d(1),
        lambda: nn.Upsample(scale_factor=2, mode="trilinear"), lambda: nn.Dropout3d(),
    ],
}  # fmt: skip


VECTORS: dict[str, Body] = {
    "expand_as": lambda m, x: x.sum(1, keepdim=True).expand_as(x) + x,
    "reshape_as": lambda m, x: x.view(-1, 2, 4).reshape_as(x),
    "view_as": lambda m, x: (x * 2).view_as(x),
    "type_as": lambda m, x: x.type_as(m.p),
    "addcmul": lambda m, x: torch.addcmul(x, x.sigmoid(), m.p, value=0.5),
    "addcmul_constants": lambda m, x: torch.addcmul(m.p, x, m.p),
    "addcmul_small": lambda m, x: torch.addcmul(x, x[:, :1], m.p[:1]),
    "addcdiv": lambda m, x: torch.addcdiv(x, x, m.p.abs() + 1, value=2),
    "lerp": lambda m, x: torch.lerp(x, x.relu(), 0.3),
    "lerp_constant": lambda m, x: torch.lerp(x, x.relu(), m.p),
    "lerp_of_the_input": lambda m, x: torch.lerp(x, x.relu(), x.sigmoid()),
    "clamp_tensor": lambda m, x: x.clamp(min=m.p),
    "clamp_both": lambda m, x: torch.clamp(x, -m.p.abs(), m.p.abs()),
    "clamp_of_the_input": lambda m, x: x.clamp(min=x.flip(1)),
    "clip": lambda m, x: x.clip(-1, 0.5),
    "new_zeros": lambda m, x: x + x.new_zeros(x.shape),
    "zeros_like": lambda m, x: x + torch.zeros_like(x),
    "ones_like": lambda m, x: x * torch.ones_like(x),
    "full_like": lambda m, x: torch.cat([x, torch.full_like(x, 2.0)], 1),
    "where": lambda m, x: torch.where(x > 0, x, x * 0.1),
    "where_constant": lambda m, x: torch.where(m.p > 0, x, m.p),
    "where_number": lambda m, x: torch.where(m.p > 0, x, 2.0),
    "where_zeros": lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
    "masked_fill": lambda m, x: x.masked_fill(m.p > 0, 3.0),
    "masked_fill_of_the_input": lambda m, x: x.masked_fill(x < 0, 0.0),
    "mask_product": lambda m, x: x * (x > 0),
    "mask_float": lambda m, x: x * (x > 0).to(x.dtype),
    "one_hot": lambda m, x: x * F.one_hot(x.argmax(1), 8),
    "gather": lambda m, x: x.gather(1, x.argsort(1)[:, :3]),
    "gather_constant": lambda m, x: x.gather(1, torch.tensor([[1, 5]]).expand(len(x), -1)),
    "take_along_dim": lambda m, x: torch.take_along_dim(x, x.argsort(1), 1),
    "own_entry": lambda m, x: x[torch.arange(len(x)), x.argmax(1)][:, None],
    "own_entries": lambda m, x: x.view(-1, 2, 4)[torch.arange(len(x)), x[:, :2].argmax(1)],
    "other_sample": lambda m, x: x[x.argmax(1) * 0],
    "index_with_a_mask": lambda m, x: x[:, m.mask],
    "boolean_index": lambda m, x: x[x > 0].sum().expand(len(x), 1),
    "index_select": lambda m, x: x.index_select(1, torch.tensor([3, 1])),
    "scatter": lambda m, x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    "scatter_add": lambda m, x: torch.zeros_like(x).scatter_add(1, x.argsort(1), x),
    "index_add": lambda m, x: torch.zeros_like(x).index_add(1, torch.tensor([0, 1] * 4), x),
    "index_put_accumulate": lambda m, x: torch.ops.aten.index_put(
        x, [None, torch.tensor([0, 0])], x[:, :2], True
    ),
    "slice_scatter": lambda m, x: x.slice_scatter(x[:, :2] * 2, 1, 3, 5),
    "select_scatter": lambda m, x: x.select_scatter(x[:, 0] * 2, 1, 3),
    "tril": lambda m, x: x.view(-1, 2, 4).tril(),
    "diagonal": lambda m, x: x.view(-1, 2, 4).diagonal(dim1=1, dim2=2),
    "unfold": lambda m, x: x.unfold(1, 3, 1),
    "rot90": lambda m, x: x.view(-1, 2, 4).rot90(1, (1, 2)),
    "hstack": lambda m, x: torch.hstack([x, x * 2]),
    "column_stack": lambda m, x: torch.column_stack([x, x]),
    "dstack": lambda m, x: torch.dstack([x.view(-1, 2, 4), x.view(-1, 2, 4)]),
    "multiply": lambda m, x: torch.multiply(torch.subtract(x, m.p), torch.divide(x, 2)),
    "floor_division": lambda m, x: x + torch.div(x, 2, rounding_mode="floor"),
    "round": lambda m, x: x + x.round(),
    "remainder": lambda m, x: x % 2,
    "reciprocal": lambda m, x: x.reciprocal(),
    "rsqrt": lambda m, x: x * (x.pow(2).mean(1, keepdim=True) + 1).rsqrt(),
    "sqrt": lambda m, x: (x.abs() + 1).sqrt(),
    "log": lambda m, x: (x.abs() + 1).log(),
    "exp": lambda m, x: x.exp(),
    "number_to_the_power": lambda m, x: 2**x,
    "maximum": lambda m, x: torch.maximum(x, m.p),
    "max": lambda m, x: x.max(1)[0][:, None],
    "min": lambda m, x: x.min(1).values[:, None],
    "topk": lambda m, x: x.topk(3)[0],
    "sort": lambda m, x: x.sort(1)[0],
    "cummax": lambda m, x: x.cummax(1)[0],
    "amax": lambda m, x: x.amax(1, keepdim=True),
    "logsumexp": lambda m, x: x.logsumexp(1, keepdim=True),
    "prod": lambda m, x: x.prod(1, keepdim=True),
    "std": lambda m, x: x.std(1, keepdim=True),
    "var_mean": lambda m, x: torch.var_mean(x, 1, keepdim=True)[0],
    "norm": lambda m, x: x.norm(dim=1, keepdim=True),
    "normalize": lambda m, x: F.normalize(x),
    "cosine": lambda m, x: F.cosine_similarity(x, m.p[None])[:, None],
    "cdist": lambda m, x: torch.cdist(x, m.w),
    "cumsum": lambda m, x: x.cumsum(1),
    "cumprod": lambda m, x: x.cumprod(1),
    "mean": lambda m, x: x.mean(1, keepdim=True),
    "einsum": lambda m, x: torch.einsum("bi,ij->bj", x, m.w),
    "broadcast_tensors": lambda m, x: (lambda a, b, c: a * 2 + b - c)(*torch.broadcast_tensors(x[:, :1], x, m.p)),
    "tensordot": lambda m, x: torch.tensordot(x.view(-1, 2, 4), m.w.view(2, 4, -1), ([1, 2], [0, 1])),
    "inner": lambda m, x: torch.inner(x, m.w.t()),
    "einsum_of_two": lambda m, x: torch.einsum("bi,bj->bij", x, x),
    "matmul": lambda m, x: x @ m.w,
    "matmul_from_the_left": lambda m, x: (m.w @ x.unsqueeze(-1)).squeeze(-1),
    "bmm": lambda m, x: torch.bmm(x.view(-1, 2, 4), x.view(-1, 4, 2)),
    "baddbmm": lambda m, x: torch.baddbmm(x.view(-1, 2, 4), x.view(-1, 2, 4), m.w[:4, :4].expand(len(x), 4, 4)),
    "addmm": lambda m, x: torch.addmm(m.p, x, m.w, alpha=2),
    "mv": lambda m, x: torch.mv(x, m.p)[:, None],
    "bilinear": lambda m, x: F.bilinear(x, x, m.w.expand(2, 8, 8)),
    "kron": lambda m, x: torch.kron(x, m.p[None, :2]),
    "attention": lambda m, x: F.scaled_dot_product_attention(*[x.view(-1, 2, 4)] * 3),
    "softmax_product": lambda m, x: (x.view(-1, 2, 4) @ x.view(-1, 4, 2)).softmax(-1) @ x.view(-1, 2, 4),
    "fft": lambda m, x: torch.fft.fft(x).real,
    "rfft": lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * 2),
    "view_as_complex": lambda m, x: torch.view_as_real(torch.view_as_complex(x.view(-1, 4, 2)) * m.c),
    "complex_matmul": lambda m, x: (x.to(torch.complex128) @ m.cc).real,
    "linalg_inv": lambda m, x: torch.linalg.inv(x[:, :4].view(-1, 2, 2)),
    "batch_of_two": lambda m, x: x.view(2, 1, -1).flatten(0, 1).view(x.shape),
    "mean_of_the_batch": lambda m, x: x - x.mean(0),
    "cat_along_the_batch": lambda m, x: torch.cat([x, x], 0)[: len(x)],
    "detach": lambda m, x: x.detach() + x,
    "numpy_transpose": lambda m, x: x.view(-1, 2, 4).mT,
    "tensor_split": lambda m, x: x.tensor_split(3, 1)[1],
    "roll": lambda m, x: x.roll(2, 1),
    "repeat_interleave": lambda m, x: x.repeat_interleave(2, dim=1),
    "bucketize": lambda m, x: x + torch.bucketize(x, m.p.sort()[0]),
    "nan_to_num": lambda m, x: x.nan_to_num(),
    "sum_of_all": lambda m, x: x + x.sum(),
    "cross_entropy": lambda m, x: F.cross_entropy(x, x.argmax(1), reduction="none")[:, None],
    "cond": lambda m, x: torch.cond(x.shape[1] > 3, lambda y: y * 2, lambda y: y, (x,)),
    "cond_of_data": lambda m, x: torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,)),
    "vmap": lambda m, x: torch.vmap(lambda row: row * 2)(x),
    "item": lambda m, x: x * x.sum().item(),
    "jit": lambda m, x: m.script(x),
    "size_from_data": lambda m, x: x[:, : int(x.argmax())],
    "nonzero": lambda m, x: x + x.nonzero().shape[0],
}  # fmt: skip


def script() -> nn.Module:
    """A module that torch.export does not look into."""
    return torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))


class _First(nn.Module):
    """The first tensor of what a recurrent or attention layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x)
        while isinstance(found, tuple):
            found = found[0]
        return found


class Table(nn.Module):
    """A linear layer, the body, and the sums of two random directions of what it gives."""

    def __init__(self, shape: tuple[int, ...], inner: nn.Module) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.shape, self.first, self.inner = shape, nn.Linear(size, size), inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.first(x).unflatten(1, self.shape) if len(self.shape) > 1 else self.first(x))
        flat = y.flatten(1)
        number = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype)
        return flat @ torch.stack([(number * 0.7).sin(), (number * 1.3).cos()], 1)


def body(function: Body) -> nn.Module:
    """A module that runs the function, with parameters that the table's bodies use."""
    module = Written(
        function, p=constant(8), w=constant(8, 8), c=nn.Parameter(torch.randn(4, dtype=torch.complex128)),
        cc=nn.Parameter(torch.randn(8, 8, dtype=torch.complex128)),
    )  # fmt: skip
    if function is VECTORS["jit"]:
        module.script = script()
    module.register_buffer("mask", torch.arange(8) % 3 == 0)
    module.register_buffer("count", torch.ones(1))
    return module


def table() -> dict[str, Callable[[], Table]]:
    """Every row by name."""
    rows: dict[str, Callable[[], Table]] = {}
    for shape, layers in LAYERS.items():
        for make in layers:
            with torch.random.fork_rng():
                name = str(make()).split("\n")[0].rstrip("(")
            name += "" if f"{name} {shape}" not in rows else " again"
            rows[f"{name} {shape}"] = lambda shape=shape, make=make: Table(shape, _First(make()))  # type: ignore[misc]
    for title, group in (("constant", CONSTANTS), ("function", VECTORS), ("in place", IN_PLACE)):
        for name, function in group.items():
            rows[f"{title}: {name}"] = lambda f=function: Table(VECTOR, body(f))  # type: ignore[misc]
    return rows
