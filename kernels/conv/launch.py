"""Which kernel computes a relevance pass through a convolution, and how many targets share a tile."""

from __future__ import annotations

from dataclasses import replace

from fastlrp.kernels.configs import Config
from fastlrp.kernels.conv.call import Call
from fastlrp.kernels.conv.depthwise import depthwise_launch
from fastlrp.kernels.conv.product import product_launch
from fastlrp.kernels.launch import Launch, channels_last

_TARGETS = 8  # of each position in a tile


def plain(call: Call) -> Call:
    """The call without what its terms do not need, with maps channels-last."""
    weight, positive, u, v = call.weight, call.positive, call.u, call.v
    signed = call.signed and v is not None
    if u is None and v is not None and not signed and positive is not None:
        weight, positive, u, v = positive, None, v, None
    x = call.x if signed or call.multiply else None
    index, u, v, x = (None if t is None else channels_last(t, 1) for t in (call.index, u, v, x))
    return replace(
        call,
        relevance=channels_last(call.relevance, 2),
        index=index,
        weight=weight,
        positive=positive if v is not None else None,
        u=u,
        v=v,
        x=x,
        signed=signed,
    )


def fused_launch(call: Call, config: Config, precision: str) -> Launch:
    """The launch of a plain call with a result."""
    targets = targets_of_tile(call, config)
    if is_depthwise(call):
        return depthwise_launch(call, config, targets)
    return product_launch(call, config, targets, precision)


def is_depthwise(call: Call) -> bool:
    return call.layer.groups == call.channels > 1


def targets_of_tile(call: Call, config: Config) -> int:
    """Targets of each position in a tile of rows: enough to share what has no target axis, few without a partner."""
    targets = call.relevance.shape[1]
    if call.signed and not is_depthwise(call) and fills(targets, config.block_m):
        return config.block_m
    return _TARGETS if targets % _TARGETS == 0 or targets >= 8 * _TARGETS else 1


def fills(targets: int, block: int) -> bool:
    """Whether blocks of targets are at least four fifths full."""
    return 4 * block * -(-targets // block) <= 5 * targets
