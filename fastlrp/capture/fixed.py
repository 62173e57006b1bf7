"""What depends on fixed tensors alone is computed while a model is traced, as numbers and not as part of the graph.

The edges of a graph network say which operations run and how large their results are: how many self-loops there are,
how many graphs a batch holds. torch.export traces tensors without data, for which it cannot know that. Tensors that are
fixed for the capture keep their data here, and so does what is computed from them alone; where they meet an activation
they are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes


class Fixed(TorchFunctionMode):
    """Within it operations whose tensors are all fixed run at once, on their data.

    Args:
        tensors: that are fixed.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(t): t for t in tensors}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not read or any(id(t) not in self._known for t in read):
            return func(*args, **kwargs)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            made = func(*args, **kwargs)
        for leaf in torch.utils._pytree.tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._known[id(leaf)] = leaf
        return made
