"""Which ATen operation is what to LRP. Everything that capture understands is in these tables.

Kinds: ``conv``, ``linear``, ``batch_norm`` (affine layers); ``activation``; ``normalization``; ``add``; ``mul``;
``cat``; ``move`` (copies entries, no arithmetic); ``write`` (copies entries of several sources, over each other:
``where``, ``masked_fill``, slice assignment); ``max_pool``, ``avg_pool``, ``adaptive_avg_pool``; ``linear_map``
(any other linear operation: mean, sum, interpolation); ``identity`` (dropped); ``unknown`` (needs a user's rule).
"""

from __future__ import annotations

from torch import nn

_KINDS: dict[str, str] = {
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "linear": "linear matmul mm addmm bmm",
    "batch_norm": "batch_norm",
    "normalization": "layer_norm group_norm instance_norm rms_norm",
    "activation": (
        "relu relu6 hardtanh sigmoid tanh silu gelu hardswish hardsigmoid elu leaky_relu softplus mish selu celu "
        "prelu softsign clamp clamp_min clamp_max threshold log_sigmoid hardshrink softshrink tanhshrink softmax "
        "log_softmax exp square abs pow rrelu"
    ),
    "add": "add sub rsub",
    "mul": "mul div neg",
    "cat": "cat concat concatenate stack",
    "move": (
        "view reshape flatten unflatten permute transpose t squeeze unsqueeze select slice narrow chunk split "
        "split_with_sizes unbind getitem expand expand_as repeat pad constant_pad_nd reflection_pad1d "
        "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d roll flip "
        "pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d im2col "
        "index_select index movedim swapaxes adjoint mT view_as reshape_as tile repeat_interleave moveaxis swapdims "
        "tril triu diagonal unfold rot90 fliplr flipud gather take_along_dim circular_pad unsafe_chunk unsafe_split "
        "unsafe_split_with_sizes tensor_split hsplit vsplit dsplit narrow_copy native_channel_shuffle atleast_2d "
        "atleast_3d matrix_H mH H numpy_T _unsafe_view unfold_copy"
    ),
    "write": (
        "where masked_fill index_put _unsafe_index_put masked_scatter index_copy index_fill scatter slice_scatter "
        "select_scatter diagonal_scatter copy fill"
    ),
    "max_pool": "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    "avg_pool": "avg_pool1d avg_pool2d avg_pool3d",
    "adaptive_avg_pool": "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    "linear_map": (
        "mean sum upsample_bilinear2d upsample_linear1d upsample_trilinear3d upsample_bicubic2d cumsum col2im einsum "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    ),
    "identity": (
        "dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d contiguous clone "
        "detach alias lift_fresh lift_fresh_copy to _to_copy type_as identity native_dropout detach_copy resolve_conj "
        "resolve_neg positive"
    ),
}

KIND_OF: dict[str, str] = {name: kind for kind, names in _KINDS.items() for name in names.split()}

KINDS = (*_KINDS, "unknown")
"""All kinds, as composites name them."""

ALIASES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "clip": "clamp", "special_expit": "sigmoid", "special_softmax": "softmax", "special_log_softmax": "log_softmax",
}  # fmt: skip
"""Other names of the same operations."""

_SIZES_ONLY = (
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided zero fill copy "
    "sym_size sym_numel sym_stride numel size is_floating_point"
)

UNREAD: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_SIZES_ONLY.split(), (0,)),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as", "to"), (1,)),
}
"""Arguments of which an operation reads sizes or dtype only, by position."""

_RANDOM = (
    "rand rand_like randn randn_like randint randint_like randperm bernoulli multinomial normal uniform exponential "
    "poisson cauchy geometric log_normal"
)

RANDOM = frozenset(_RANDOM.split())
"""Operations that draw random numbers."""

NAMED_LIKE: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
    "linear": nn.Linear,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softmax": nn.Softmax,
    "layer_norm": nn.LayerNorm,
    "group_norm": nn.GroupNorm,
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "max_pool3d": nn.MaxPool3d,
    "avg_pool1d": nn.AvgPool1d,
    "avg_pool2d": nn.AvgPool2d,
    "avg_pool3d": nn.AvgPool3d,
    "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d,
}
"""Functional calls match a composite's entries for the module type that does the same."""

AFFINE_KINDS = ("conv", "linear", "batch_norm")
"""Kinds with a weight: the rules of :data:`fastlrp.rules.AFFINE_RULES` apply."""

RULED_KINDS = (*AFFINE_KINDS, "activation", "normalization", "add", "mul", "max_pool", "avg_pool",
               "adaptive_avg_pool", "linear_map", "unknown")  # fmt: skip
"""Kinds that need a rule; ``move`` and ``cat`` only carry relevance to where it came from."""
