"""How the kernel of a convolution or the window of a pool goes over its input: lists have one entry per axis."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ConvGeometry:
    """Of a convolution; a linear layer has no axes to go along."""

    stride: list[int] = field(default_factory=list)
    padding: list[int] = field(default_factory=list)
    dilation: list[int] = field(default_factory=list)
    transposed: bool = False
    output_padding: list[int] = field(default_factory=list)
    groups: int = 1

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        """As ``torch.convolution`` and our own operations take them."""
        return (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)

    @property
    def is_plain(self) -> bool:
        """Whether each output reads all input channels, and no input position stands for several outputs."""
        return not self.transposed and self.groups == 1


@dataclass(frozen=True)
class PoolGeometry:
    """Of a pool; average pools have no dilation."""

    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int] = field(default_factory=list)

    @property
    def windows(self) -> tuple[list[int], list[int], list[int]]:
        """As average pools take them."""
        return (self.kernel_size, self.stride, self.padding)

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """As max-pools take them."""
        return (self.kernel_size, self.stride, self.padding, self.dilation)

    @property
    def overlaps(self) -> bool:
        """Whether an entry may stand in two windows."""
        return any(d * (k - 1) >= s for k, s, d in zip(self.kernel_size, self.stride, self.dilation, strict=True))
