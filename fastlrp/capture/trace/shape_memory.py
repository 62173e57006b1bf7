"""Whether torch.export is to remember, while it traces, which shapes an operation gives for which arguments.

With a batch of any size, making an entry costs as much as working the shape out does: a tenth to a third of a small
model's capture, which is gained back where the model repeats itself often enough. A ResNet-18 is captured a quarter
faster with that memory, an encoder layer takes half as long again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

LAYERS = 40
"""A model of so many layers repeats itself often enough."""
_SWITCH = "fake_tensor_cache_enabled"


@contextlib.contextmanager
def shapes_remembered(model: nn.Module) -> Iterator[None]:
    """In this block torch.export remembers shapes if the model is large (and if it did so before)."""
    from torch._dynamo import config  # With the first capture: importing it takes as long as all of fastlrp.

    large = sum(next(m.children(), None) is None for m in model.modules()) >= LAYERS
    if large or not getattr(config, _SWITCH, False):
        yield
        return
    with config.patch({_SWITCH: False}):
        yield
