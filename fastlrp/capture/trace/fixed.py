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

_MAKERS = ("arange", "zeros", "ones", "full", "tensor", "empty")
"""Functions that make tensors of numbers alone."""


def _symbolic(tree: Any) -> bool:
    return any(isinstance(leaf, torch.SymInt) for leaf in torch.utils._pytree.tree_leaves(tree))


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
        if not read:
            return self._made_of_nothing(func, args, kwargs)
        if any(id(t) not in self._known for t in read):
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                args = (args[0], self._by_numbers(args[1]), *args[2:])
            return func(*args, **kwargs)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            made = func(*args, **kwargs)
        self._remember(made)
        return made

    def _made_of_nothing(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Integers that the model makes, ``torch.arange(n)``, are fixed too, and numbers that it has; other floats are
        not, into which messages are written."""
        name = getattr(func, "__name__", "")
        if name in _MAKERS and not _symbolic((args, kwargs)):
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                made = func(*args, **kwargs)
            if isinstance(made, Tensor) and (name == "tensor" or not made.is_floating_point()):
                self._remember(made)
                return made
        return func(*args, **kwargs)

    def _remember(self, made: Any) -> None:
        for leaf in torch.utils._pytree.tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._known[id(leaf)] = leaf

    def _by_numbers(self, index: Any) -> Any:
        """An index with the places of a fixed mask in the mask's stead, so that it is known how many there are."""
        items = list(index) if isinstance(index, tuple) else [index]
        found: list[Any] = []
        for item in items:
            if isinstance(item, Tensor) and id(item) in self._known and item.dtype in (torch.bool, torch.uint8):
                with _disable_current_modes(), torch._C.DisableTorchFunction():
                    places = item.nonzero().unbind(1)
                self._remember(places)
                found += places
            else:
                found.append(item)
        return tuple(found) if isinstance(index, tuple) or len(found) != 1 else found[0]
