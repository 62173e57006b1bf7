"""What Captum's other tools ask of an attribution method: whose kind it is, its name, its gradient."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from fastlrp.compat.captum.targets import position

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S")


_BOTH: dict[tuple[type, type], type] = {}
"""Classes of ours and Captum's both, by the two."""


class Kin:
    """An object that passes for one of Captum's class of the same name where a program has imported Captum.

    Captum's tools ask ``isinstance(method, Attribution)``. Its classes are no abstract ones that others could be
    registered with, and a subclass of them would need Captum. So the attribute ``__class__``, which ``isinstance``
    looks at beside the type, is a class of both, made when it is first asked for. Nothing of Captum is imported or
    called for that, and ``type(method)`` stays what it is.
    """

    _captum_name = ""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        own = type(self)
        theirs = getattr(sys.modules.get("captum.attr"), own._captum_name, None)
        if not isinstance(theirs, type):
            return own
        if (own, theirs) not in _BOTH:
            _BOTH[own, theirs] = type(
                own.__name__, (own, theirs), {"__module__": own.__module__, "__doc__": own.__doc__}
            )
        return _BOTH[own, theirs]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are of the type, whatever ``__class__`` is here."""
        return _new, (type(self),), self.__dict__

    @classmethod
    def get_name(cls) -> str:
        """The class's name with a blank before each capital letter but the first, as Captum makes it."""
        return "".join(c if c.islower() or not i else f" {c}" for i, c in enumerate(cls.__name__))


def _new(kind: type[Kin]) -> Kin:
    return kind.__new__(kind)


def as_captum_calls_it(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """A method with the attribute ``__wrapped__``: Captum's tools call that, past the log of their own decorator."""

    @functools.wraps(method)
    def called_by_captum(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return method(self, *args, **kwargs)

    return called_by_captum


def gradients(
    forward_fn: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    target_ind: Any = None,
    additional_forward_args: Any = None,
) -> tuple[Tensor, ...]:
    """The plain gradient of each sample's target by the inputs, as Captum's methods have it as ``gradient_func``.

    Args:
        forward_fn: the model. inputs: its first arguments, which require a gradient.
        target_ind: one entry of each sample's output, see :func:`fastlrp.compat.captum.targets.position`.
        additional_forward_args: further arguments of the model.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    more = additional_forward_args
    extra = () if more is None else more if isinstance(more, tuple) else (more,)
    with torch.enable_grad():
        output = forward_fn(*given, *extra)
        flat = output.reshape(len(output), -1)
        scores = flat.gather(1, position(output, target_ind).unsqueeze(1))
        return torch.autograd.grad(scores.sum(), given)
