"""ATen overloads as functions without side effects: what an operation of the exported program computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.arguments import bind
from fastlrp.errors import CaptureError
from fastlrp.kinds.vocabulary import plain_name

_COPIES_IF_NEEDED = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.view_as.default: torch.ops.aten.reshape_as.default,
}


def strided(x: Tensor, *size_and_stride: Any, **options: Any) -> Tensor:
    """``as_strided`` of a tensor that lies in memory in the order of its axes, as it did where it was captured."""
    return torch.as_strided(x.contiguous(), *size_and_stride, **options)


def operation(target: Any) -> tuple[str, Callable[..., Any], bool]:
    """Plain name, functional form, and whether the original worked in place.

    Nothing is known of an operator of another namespace than ATen, whatever its name: it keeps the namespace in its
    name (``mylib::relu``), which no list of ATen's names has.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target)), target, False
    name = plain_name(target._schema.name)
    if target._schema.is_mutable and name.endswith("_"):
        plain = _without_side_effects(name)
        packet = getattr(getattr(torch.ops, target.namespace), plain.split("::")[-1], None)
        same = None if packet is None else _of_same_arguments(packet, target)
        if same is not None:
            name = plain_name(plain)
            return name, copied if name == "copy" else same, True
    if target._schema.is_mutable:
        raise CaptureError(
            f"{target} writes into a tensor in place, and no operation is known that does the same without writing: "
            "let the model call one that gives a new tensor"
        )
    if name == "as_strided" and target.namespace == "aten":
        return name, strided, False
    if "empty" in name and target.namespace == "aten":
        return name, zeroed(target), False
    # Capture drops `contiguous` and `clone`, after which a view need not be one.
    return name, _COPIES_IF_NEEDED.get(target, target), False


def _without_side_effects(name: str) -> str:
    """``add`` of ``add_``, ``__or__`` of ``__ior__``, which is what ``|=`` calls."""
    return f"__{name[3:]}" if name.startswith("__i") and name.endswith("__") else name[:-1]


def written_operands(fx: torch.fx.Node) -> list[torch.fx.Node]:
    """The operands that an operation writes into, where it is no ``add_`` that has a form without side effects."""
    target: Any = fx.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return []
    if target._schema.name.endswith("_"):
        return []
    given = bind(target, fx.args, fx.kwargs)
    names = [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [given[name] for name in names if isinstance(given.get(name), torch.fx.Node)]


def _of_same_arguments(packet: Any, target: Any) -> Any:
    """The overload without side effects for the same arguments: that of ``pow_.Scalar`` is ``pow.Tensor_Scalar``."""
    wanted = [str(a.type) for a in target._schema.arguments]
    names = sorted(packet.overloads(), key=lambda name: name != target._overloadname)
    found = (getattr(packet, name) for name in names)
    return next((o for o in found if [str(a.type) for a in o._schema.arguments] == wanted), None)


def zeroed(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Zeros where ``call`` leaves memory as it is, which may be NaN."""
    return lambda *args, **kwargs: call(*args, **kwargs).zero_()


def copied(target: Tensor, source: Tensor, *rest: Any, **options: Any) -> Tensor:
    """What ``target.copy_(source)`` leaves in the target."""
    return source.expand(target.shape).to(target.dtype)


def part(call: Callable[..., Any], index: int) -> Callable[..., Any]:
    """One of several results of ``call``, which stays known as its ``whole``."""

    def result_at_index(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)[index]

    result_at_index.whole = call  # type: ignore[attr-defined]
    result_at_index.position = index  # type: ignore[attr-defined]
    return result_at_index
