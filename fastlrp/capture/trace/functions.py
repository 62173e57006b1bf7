"""Functions with a backward of their own, ``torch.autograd.Function``, while a model is traced.

The tracer sees the operations of their forward alone. Here each result goes through an operation that gives it back,
reads what the function read, and has a number by which the function is known: a gradient is taken as the function's own
backward gives it, while relevance goes through the operations of its forward.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from fastlrp.errors import CaptureError

MARK = "fastlrp_capture::custom_backward"


def _same(result: Tensor, read: list[Tensor], sizes: list[int], number: int) -> Tensor:
    return result.view_as(result)


_LIBRARY = torch.library.Library("fastlrp_capture", "FRAGMENT")  # The operation lives as long as it does.
_LIBRARY.define("custom_backward(Tensor(a) result, Tensor[] read, SymInt[] sizes, int number) -> Tensor(a)")
_LIBRARY.impl("custom_backward", _same, "CompositeExplicitAutograd")
torch.library.register_fake(MARK, _same, lib=_LIBRARY)

_mark: Any = torch.ops.fastlrp_capture.custom_backward


class _Marking(Function):
    """The operation, which a model's own gradients go through: ``torch.autograd.grad`` in a forward pass."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        marked: Tensor = _mark(*args)
        return marked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None, None


_NUMBERS = itertools.count()


@dataclass(frozen=True)
class _Place:
    """A place among the arguments that holds a tensor or a size of the trace."""

    position: int
    is_size: bool = False
    is_complex: bool = False


@dataclass(eq=False)
class Applied:
    """One result of a function at the place of the model where it is applied.

    Attributes:
        function: the class. leaves, spec: its arguments, with places for tensors and sizes of the trace.
        result: which of several results; None for the only one.
    """

    function: Any
    leaves: list[Any]
    spec: TreeSpec
    result: int | None

    def __call__(self, read: Any, sizes: Any) -> Tensor:
        """The function itself, of the tensors and sizes that it reads. Complex numbers are real and imaginary parts."""

        def given(leaf: Any) -> Any:
            if not isinstance(leaf, _Place):
                return leaf
            if leaf.is_size:
                return sizes[leaf.position]
            t = read[leaf.position]
            return torch.view_as_complex(t.contiguous()) if leaf.is_complex else t

        args, kwargs = tree_unflatten([given(leaf) for leaf in self.leaves], self.spec)
        found = self.function.apply(*args, **kwargs)
        return _real(found if self.result is None else found[self.result])


class Marked:
    """The operation in a graph: gives its first argument back, and knows the function that made it."""

    def __init__(self, applied: Applied) -> None:
        self.applied = applied

    def __call__(self, result: Tensor, read: Any, sizes: Any, number: int) -> Tensor:
        return result

    def function(self, result: Tensor, read: Any, sizes: Any, number: int) -> Tensor:
        """The same by the function itself, which autograd follows."""
        return self.applied(read, sizes)

    @property
    def name(self) -> str:
        """The name of the function's class."""
        found: str = self.applied.function.__name__
        return found


class OfEachSample(Marked):
    """The same where the first axis of all tensors is one of samples, each of which the function gets alone.

    Args:
        applied: the function. alone: which of the tensors that it reads have that axis; others are the same for all.
    """

    def __init__(self, applied: Applied, alone: Sequence[bool]) -> None:
        super().__init__(applied)
        self.alone = alone

    def function(self, result: Tensor, read: Any, sizes: Any, number: int) -> Tensor:
        """The function for one sample after the other."""
        if not len(result):
            return result
        return torch.stack(
            [
                self.applied([t[i] if own else t for t, own in zip(read, self.alone, strict=True)], sizes)
                for i in range(len(result))
            ]
        )


class _Following:
    """What one trace meets: functions by the numbers that stand in its graph."""

    def __init__(self) -> None:
        self.met: dict[int, Applied] = {}

    def call(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What ``function.apply(*args, **kwargs)`` gives, its results marked."""
        if function is CheckpointFunction:  # Its backward is that of what it runs.
            return args[0](*args[2:])
        leaves, spec = tree_flatten((args, kwargs))
        if function is BackwardHookFunction or not any(isinstance(leaf, Tensor) for leaf in leaves):
            return _run(function, *args, **kwargs)
        read: list[Tensor] = []
        sizes: list[torch.SymInt] = []
        places: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                places.append(_Place(len(read), is_complex=leaf.is_complex()))
                read.append(_real(leaf))
            elif isinstance(leaf, torch.SymInt):
                places.append(_Place(len(sizes), is_size=True))
                sizes.append(leaf)
            else:
                places.append(leaf)
        writes = "mark_dirty" in _names(function)  # Then it writes into copies, which are written back marked.
        given = [leaf.clone() if writes and isinstance(leaf, Tensor) else leaf for leaf in leaves]
        own_args, own_kwargs = tree_unflatten(given, spec)
        returned = _run(function, *own_args, **own_kwargs)
        several = isinstance(returned, (tuple, list))
        results = []
        for i, result in enumerate(returned if several else [returned]):
            made = result
            if isinstance(result, Tensor) and (result.is_floating_point() or result.is_complex()):
                made = self.mark(result, read, sizes, Applied(function, places, spec, i if several else None))
            over = next((old for old, new in zip(leaves, given, strict=True) if writes and new is result), None)
            results.append(made if over is None else over.copy_(made))
        return type(returned)(results) if several else results[0]

    def mark(self, result: Tensor, read: list[Tensor], sizes: list[Any], applied: Applied) -> Tensor:
        """The result as the operation gives it."""
        number = next(_NUMBERS)
        self.met[number] = applied
        marked: Tensor = _apply(_Marking, _real(result), read, sizes, number)
        return torch.view_as_complex(marked) if result.is_complex() else marked


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def _names(function: Any) -> set[str]:
    """Names in the code of the class's own methods."""
    codes = (getattr(getattr(function, name, None), "__code__", None) for name in ("forward", "setup_context"))
    return {name for code in codes if code is not None for name in code.co_names}


def _copy(function: Any) -> Any:
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_OWN: Any = vars(Function)["apply"].__func__
_apply = _copy(_OWN)
"""``Function.apply`` as PyTorch has it."""
_FOLLOWING: dict[int, _Following] = {}
"""What follows the functions of a thread, by the thread's number."""


def _run(function: Any, *args: Any, **kwargs: Any) -> Any:
    """``function.apply(*args, **kwargs)``, after which the trace knows again whether gradients are on.

    PyTorch turns them off around a forward and on again behind it, unseen by the tracer. A block under
    ``torch.no_grad`` inside of the forward would end with them off, and so would all that the model computes after it.
    """
    are_on = torch.is_grad_enabled()
    try:
        return _apply(function, *args, **kwargs)
    finally:
        if are_on:
            torch.set_grad_enabled(True)


def _applied(function: Any, args: Any, kwargs: Any) -> Any:
    here = _FOLLOWING.get(threading.get_ident())
    if here is None or torch._C._are_functorch_transforms_active():
        return _apply(function, *args, **kwargs)
    return here.call(function, args, kwargs)


def is_followed() -> bool:
    """Whether this thread traces a model."""
    return threading.get_ident() in _FOLLOWING


class Hooked(Function):
    """Gives back its input, whose gradient goes through a hook."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Tensor:
        ctx.hook = hook
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        changed = ctx.hook(gradients[0])
        return gradients[0] if changed is None else changed, None


class _Handle(RemovableHandle):
    """Of a hook of the trace, which takes it out again."""

    def __init__(self, hook: _Hook) -> None:
        super().__init__(OrderedDict())
        self._hook = hook

    def remove(self) -> None:
        self._hook.is_there = False


class _Hook:
    """A hook as long as its handle leaves it where it is."""

    def __init__(self, call: Callable[[Tensor], Tensor | None]) -> None:
        self._call, self.is_there = call, True

    def __call__(self, gradient: Tensor) -> Tensor | None:
        return self._call(gradient) if self.is_there else None


def note_hook(held: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Let the gradient of a tensor of this thread's trace go through a hook, whoever reads the tensor."""
    if held.is_complex():
        raise CaptureError(
            "the model could not be captured: it puts a hook on the gradient of a complex tensor, which is not "
            "followed. Put it on torch.view_as_real(z), and go on with torch.view_as_complex of that"
        )
    kept = _Hook(hook)
    leaves, spec = tree_flatten(((held, kept), {}))
    _FOLLOWING[threading.get_ident()].mark(held, [held], [], Applied(Hooked, [_Place(0), *leaves[1:]], spec, None))
    return _Handle(kept)


class _StandIn:
    applied_in_a_trace = staticmethod(_applied)

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Its code takes the place of that of ``Function.apply``, whose ``__class__`` is ``Function``."""
        return __class__.applied_in_a_trace(cls, args, kwargs)  # type: ignore[name-defined]


@contextlib.contextmanager
def functions_followed() -> Iterator[dict[int, Applied]]:
    """Within it functions that the calling thread applies are marked; gives them by number.

    Models hold ``MyFunction.apply`` itself, so that another function in its place would not be seen: the code of the
    one that there is changes. Captures stand in line, so that one changes it at a time.
    """
    thread = threading.get_ident()
    code, before = _OWN.__code__, _FOLLOWING.get(thread)
    here = _FOLLOWING[thread] = _Following()
    Function.applied_in_a_trace = _StandIn.applied_in_a_trace  # type: ignore[attr-defined]
    _OWN.__code__ = vars(_StandIn)["apply"].__func__.__code__
    try:
        yield here.met
    finally:
        _OWN.__code__ = code
        _FOLLOWING.pop(thread)
        if before is not None:
            _FOLLOWING[thread] = before


def mark_functions(program: torch.export.ExportedProgram, met: dict[int, Applied]) -> None:
    """Note on each node of the program that stands for a function which one it is. Who reads what a hook is on reads
    what stands for the hook, the first of several the last."""
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in reversed(list(getattr(graph, "nodes", ()))):
            if node.op != "call_function" or node.target is not _mark.default:
                continue
            node.meta[MARK] = met[node.args[3]]
            if met[node.args[3]].function is Hooked:
                _put_behind(node.args[0], node)


def _put_behind(held: torch.fx.Node, node: torch.fx.Node) -> None:
    inputs = [n for n in held.graph.nodes if n.op == "placeholder"]
    (inputs[-1] if held in inputs else held).append(node)
    held.replace_all_uses_with(node, lambda user: user is not node)
