"""Which configurations of a kernel are worth a try on a device."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.kernels.configs import Config
from fastlrp.tune import attention

KERNELS = {
    "conv": "conv_relevance", "conv_both": "conv_relevance", "conv_signed": "conv_relevance",
    "conv_depthwise": "conv_relevance", "conv_unpooled": "conv_unpooled_relevance",
    "conv_both_unpooled": "conv_unpooled_relevance", "conv_signed_unpooled": "conv_unpooled_relevance",
    "linear": "linear_relevance", "linear_signed": "linear_relevance", "input_relevance": "input_relevance",
    **attention.KERNELS,
}  # fmt: skip
"""What tables have rows for, each with the operation that reads it."""

WITHOUT_LIBRARY = ("conv_depthwise", "input_relevance", *attention.WITHOUT_LIBRARY)


@dataclass(frozen=True)
class Space:
    """What is tried: tiles ``(block_m, block_n, block_k, num_warps)``, each with these numbers of stages."""

    tiles: tuple[tuple[int, int, int, int], ...]
    stages: tuple[int, ...]


SPACES = {
    # wgmma takes 64 rows for four warps; eight warps share a tile of 128 rows, or two tiles of 64 columns.
    "half": Space(
        ((16, 64, 64, 4), (16, 128, 64, 4), (64, 16, 64, 4), (128, 16, 32, 4), (64, 64, 32, 4), (64, 64, 64, 4),
         (128, 64, 32, 4), (128, 64, 64, 4), (128, 64, 64, 8), (64, 128, 64, 4), (128, 128, 32, 8), (128, 128, 64, 8),
         (256, 64, 32, 8), (128, 256, 64, 8)),
        (2, 3, 4),
    ),
    "tf32": Space(
        ((16, 64, 32, 4), (16, 128, 32, 4), (64, 16, 32, 4), (128, 16, 32, 4), (64, 32, 32, 4), (64, 64, 16, 4),
         (64, 64, 32, 4), (128, 64, 16, 4), (128, 64, 32, 4), (128, 64, 32, 8), (64, 128, 32, 4), (128, 128, 16, 8),
         (128, 128, 32, 8), (256, 64, 32, 8)),
        (2, 3, 4),
    ),
    "ieee": Space(
        ((16, 64, 16, 4), (16, 128, 16, 4), (64, 16, 16, 4), (128, 16, 16, 4), (32, 64, 16, 4), (64, 32, 16, 4),
         (64, 64, 16, 4), (64, 64, 16, 8), (128, 64, 16, 8), (64, 128, 16, 8), (128, 128, 16, 8)),
        (1, 2, 3),
    ),
}  # fmt: skip

_ITEMSIZE = {"half": 2, "tf32": 4, "ieee": 4}


def shared_bytes(config: Config, kind: str) -> int:
    """What the pipeline of one product keeps in shared memory; the kernel needs at least this."""
    tile = (config.block_m + config.block_n) * config.block_k * _ITEMSIZE[kind]
    return max(1, config.num_stages - 1) * tile


def candidates(kernel: str, kind: str, shared_limit: int, columns: int, quick: bool = False) -> list[Config]:
    """Configurations to try, the library's route last.

    Args:
        shared_limit: bytes that a block may have. columns: the most result channels of any call: wider tiles than
            that would compute zeros. quick: one number of stages.
    """
    if kernel in attention.KERNELS:
        return attention.candidates(kernel, kind, shared_limit, columns, quick)
    space = SPACES[kind]
    widest = max(16, 1 << (columns - 1).bit_length())
    tiles = [tile for tile in space.tiles if tile[1] <= widest]
    if kernel == "input_relevance":  # Takes as many columns as there are.
        tiles = list({(m, k, w): (m, 16, k, w) for m, _, k, w in space.tiles}.values())
    stages = (space.stages[1],) if quick else space.stages
    found = [Config(*tile, n) for tile in tiles for n in stages]
    found = [config for config in found if shared_bytes(config, kind) <= shared_limit]
    return found + ([] if kernel in WITHOUT_LIBRARY or not found else [Config(*tiles[0], stages[0], "library")])
