"""One operation of an exported program becomes a value, its constants folded, or the few nodes that stand for it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastlrp.capture import faults
from fastlrp.capture.arguments import bind
from fastlrp.capture.carrying import carries
from fastlrp.capture.graph import Constant, Graph, Node, Value, Written, leaves
from fastlrp.capture.trace import padded, recurrent
from fastlrp.capture.translate.calls import part
from fastlrp.capture.translate.complex_numbers import translated
from fastlrp.capture.translate.folding import fold
from fastlrp.capture.translate.mask_sizes import settled
from fastlrp.capture.translate.memory import Write
from fastlrp.capture.translate.metadata import is_whole_copy, same_dtype, sizes
from fastlrp.capture.translate.pairs import COMPLEX_OUTPUT, OnPairs, Pair, Translation, complex_of
from fastlrp.capture.translate.rewrite import Step, Steps
from fastlrp.capture.translate.rewrite_functions import REWRITES
from fastlrp.kinds.registry import KIND, KIND_OF
from fastlrp.kinds.vocabulary import REGISTERED, UNREAD

_RECURRENT = (*recurrent.SEQUENCES, *recurrent.CELLS, padded.PADDED)


@dataclass(frozen=True)
class Call:
    """One operation of the exported program with its arguments resolved."""

    fx: torch.fx.Node
    name: str
    call: Callable[..., Any]
    args: Any
    kwargs: Any
    target: Any
    path: str
    module_type: type | None
    shape: tuple[int | str | None, ...] | None = None
    dtype: torch.dtype | None = None


def written_unseen(new: Tensor, old: Tensor) -> Tensor:
    """What memory holds after a write that autograd does not see, which leaves the gradient that of ``old``."""
    return new


class Emitter:
    """Appends nodes to a graph.

    Args:
        batch: the only batch size that the program takes; None for one that is symbolic.
    """

    def __init__(self, graph: Graph, batch: int | None) -> None:
        self.graph, self.batch = graph, batch
        self.known: dict[Any, int] = {}

    def shape(self, meta: Tensor) -> tuple[int | str | None, ...]:
        """That of a value, with a letter for the batch."""
        return sizes(meta, self.batch, self.known)

    def emit_call(self, c: Call) -> Any:
        """What an operation of the program gives; of a recurrent layer a list of its results."""
        before = len(self.graph.nodes)
        made = self._recurrent(c) if c.name in _RECURRENT else None
        if made is not None:
            self._note(c, before)
            return made
        return self.emit(c)

    def _note(self, c: Call, before: int) -> None:
        """Remember an operation for which the nodes since ``before`` stand."""
        made = self.graph.nodes[before:]
        if any(node.output.is_differentiable for node in made) and all(node.operation != c.name for node in made):
            parts = tuple((node.operation, node.kind) for node in made)
            self.graph.written.append(Written(c.name, c.path, c.module_type, parts))

    def emit(self, c: Call) -> Any:
        """The value, constant or number that an operation gives."""
        if c.call is operator.getitem and isinstance(c.args[0], (tuple, list)):
            return c.args[0][c.args[1]]
        rewritten_as = c.name
        if c.name == "getitem" and isinstance(c.args[0], Value) and c.args[0].producer is not None:
            c, rewritten_as = _part_of_whole(c, c.args[0].producer, c.args[1])
        before = len(self.graph.nodes)
        fx, name, args = c.fx, c.name, c.args
        if KIND_OF.get(name) == "detached" and args and isinstance(args[0], Pair):
            return self.detached(args[0], fx)
        if self._is_complex(c):
            made = self._of_parts(c)
            self._note(c, before)
            return made
        meta = fx.meta.get("val")
        if name == "sym_size" and self.known and isinstance(meta, torch.SymInt):
            size = settled(meta, self.known)
            if size.is_Integer:
                return int(size)
        state = recurrent.one_state(name, args)
        if state is not None:
            return state
        steps = self._steps_instead(c, rewritten_as, meta)
        if steps is not None:
            result = self._rewritten(c, steps)
            self._note(c, before)
            return result
        args = self._of_sizes_alone(name, args, meta)
        if not any(isinstance(leaf, Value) for leaf in leaves((args, c.kwargs))):
            return fold(fx.name, c.call, args, c.kwargs, meta, faults.random_numbers(name, c.path))
        return self._same_or_made(c, args)

    def _steps_instead(self, c: Call, name: str, meta: Any) -> Steps | None:
        """The operations that stand for this one, which is looked up as ``name``; None if it stands for itself."""
        rewrite = None if c.name in REGISTERED else REWRITES.get(name)
        if rewrite is None or meta is None or not any(isinstance(leaf, Value) for leaf in leaves((c.args, c.kwargs))):
            return None
        return rewrite(bind(c.target, c.args, c.kwargs), self.shape(meta))

    def _same_or_made(self, c: Call, args: Any) -> Any:
        """The operand, where the operation gives back its very numbers; else the value of a node of its own."""
        kind = "write" if isinstance(c.call, Write) else KIND_OF.get(c.name, "unknown")
        first = args[0] if args else None
        if kind == "detached" and not (isinstance(first, Value) and first.is_float and first.carries):
            kind = "identity"
        if kind == "identity" and isinstance(first, Value):
            if same_dtype(c.fx, first):
                self.graph.written.append(Written(c.name, c.path, c.module_type))
                return first
            kind = "move"  # A conversion to another dtype.
        if c.name == "copy" and isinstance(args[1], (Value, Constant)) and is_whole_copy(c.fx, args[1], self.batch):
            return args[1]
        return self.make(c, kind)

    def detached(self, x: Any, fx: torch.fx.Node, over: Any = None) -> Any:
        """A value from which no gradient flows down: a result of a block under ``torch.no_grad``, for example.

        Args:
            over: what it is written over, unseen by autograd: to this its gradient flows.
        """
        value, old = (item.parts if isinstance(item, Pair) else item for item in (x, over))
        stays = isinstance(old, Value) and old.is_float and bool(old.carries)
        if not stays and not (isinstance(value, Value) and value.is_float and value.carries):
            return x
        like = value if isinstance(value, Value) else old
        call: Any = written_unseen if stays else torch.ops.aten.detach.default
        path, type_ = ("", None) if like.producer is None else (like.producer.path, like.producer.module_type)
        args = (value, old) if stays else (value,)
        made = self.make(Call(fx, "detach", call, args, {}, call, path, type_, like.shape, like.dtype), "detached")
        return replace(x, parts=made) if isinstance(x, Pair) else made

    def _recurrent(self, c: Call) -> Any:
        """The results of a recurrent layer or cell, of which each layer and direction becomes a node."""
        meta = c.fx.meta.get("val")
        results = [meta] if isinstance(meta, Tensor) else list(meta or ())
        bound = bind(c.target, c.args, c.kwargs)
        if not results or not ("hx" in bound and ("params" in bound or "w_ih" in bound)) or "data" in bound:
            return None
        if c.name == padded.PADDED:
            bound["batch_first"] = True
            bound["hx"] = bound["hx"] if bound["mode"] == "lstm" else bound["hx"][0]

        def emit(name: str, call: Any, args: tuple[Any, ...], shape: Any, dtype: torch.dtype) -> Value:
            step = Call(c.fx, name, call, args, {}, call, c.path, c.module_type, shape, dtype)
            return self.make(step, KIND_OF[name])

        readers = [user for user in c.fx.users if user.target is operator.getitem and user.args[1] == 2]
        with_cell = any(user.users for user in readers)
        shapes = [self.shape(t) for t in results]
        return recurrent.split(bound.get("mode", c.name), bound, shapes, results[0].dtype, with_cell, emit)

    def _is_complex(self, c: Call) -> bool:
        """Whether complex numbers that depend on the input, or on its sizes, are read or given."""
        found = list(leaves((c.args, c.kwargs)))
        if any(isinstance(leaf, Pair) for leaf in found) or (c.name == "stft" and c.dtype is None):
            return True  # torch.stft by the same way where it gives real and imaginary parts itself.
        gives = c.dtype is None and any(t.dtype.is_complex for t in _tensors(c.fx))
        activations = [leaf for leaf in found if isinstance(leaf, Value)]
        return gives and bool(activations) and not any(v.dtype is not None and v.dtype.is_complex for v in activations)

    def _of_parts(self, c: Call) -> Any:
        """The same between real and imaginary parts."""
        results = _tensors(c.fx)
        if not results:  # A size, or a check of torch.export's own, of a dtype for example.
            return self._size_of_pair(c)
        dtypes = [t.dtype.to_real() if t.dtype.is_complex else t.dtype for t in results]

        def make(
            name: str, call: Any, args: tuple[Any, ...], shape: Any, kind: str | None = None,
            kwargs: dict[str, Any] | None = None, dtype: torch.dtype | None = None,
        ) -> Value:  # fmt: skip
            target = c.target if isinstance(call, OnPairs) else call
            step = Call(c.fx, name, call, args, kwargs or {}, target, c.path, c.module_type, shape, dtype or dtypes[0])
            return self.make(step, kind or KIND_OF.get(name, "unknown"))

        bound = bind(c.target, c.args, c.kwargs)
        shapes, gives = [self.shape(t) for t in results], [t.dtype.is_complex for t in results]
        of_parts = dtypes[0], results[0].device
        return translated(Translation(c.name, c.call, c.args, c.kwargs, bound, shapes, gives, *of_parts, make))

    def _size_of_pair(self, c: Call) -> Any:
        z = c.args[0]
        if c.name != "sym_size" or not isinstance(z, Pair):
            return None
        args = (z.parts, c.args[1] % len(z.shape))
        return self.emit(Call(c.fx, c.name, c.call, args, c.kwargs, c.target, c.path, c.module_type))

    def complex_output(self, pair: Pair) -> Value:
        """A complex result of the model, of which no relevance can be asked."""
        dtype = torch.complex128 if pair.parts.dtype == torch.float64 else torch.complex64
        value = self.graph.new_value(pair.parts.name, pair.shape, dtype)
        node = Node("unknown", COMPLEX_OUTPUT, complex_of, (pair.parts,), {}, (pair.parts,), value)
        value.producer, value.depends, value.carries = node, pair.parts.depends, pair.parts.carries
        self.graph.nodes.append(node)
        return value

    def _of_sizes_alone(self, name: str, args: Any, meta: Any) -> Any:
        """Arguments of ``x.new_zeros(7, 7)`` and the like, which read no more of ``x`` than dtype and device."""
        if not name.startswith("new_") or self.batch is not None or not isinstance(args[0], Value):
            return args
        if not all(isinstance(n, int) for n in self.shape(meta)):
            return args
        return (Constant(name, torch.zeros((), dtype=args[0].dtype, device=meta.device)), *args[1:])

    def _rewritten(self, c: Call, steps: Steps) -> Any:
        """The operations that one stands for, one after the other."""
        results: list[Any] = []
        for call, name, args, kwargs, *shape in steps:
            target = getattr(call, "whole", call)
            args = tree_map(lambda leaf: results[leaf.position] if isinstance(leaf, Step) else leaf, args)
            results.append(self.emit(Call(c.fx, name, call, args, kwargs, target, c.path, c.module_type, *shape)))
        return results[-1]

    def make(self, c: Call, kind: str) -> Value:
        """A node of this kind at the end of the graph, unless its arguments make it another; its value."""
        fx, args, kwargs = c.fx, c.args, c.kwargs
        meta = fx.meta.get("val")
        if c.dtype is not None:
            value = self.graph.new_value(fx.name, c.shape or (), c.dtype)
        elif isinstance(meta, Tensor):
            value = self.graph.new_value(fx.name, c.shape or self.shape(meta), meta.dtype)
        else:
            value = self.graph.new_value(fx.name, (), None)
            kind = kind if isinstance(meta, (tuple, list)) else "scalar"
        inputs = tuple(dict.fromkeys(v for v in leaves((args, kwargs)) if isinstance(v, Value)))
        node = Node(kind, c.name, c.call, args, kwargs, inputs, value, c.path, c.module_type)
        places = _unread(c)
        unread = [args[i] for i in places if i < len(args) and isinstance(args[i], Value)]
        others = list(leaves([a for i, a in enumerate(args) if i not in places]))
        read = [v for v in (*others, *leaves(kwargs)) if isinstance(v, Value)]
        node.attributes.update(unread=tuple(v for v in unread if v not in read))
        value.depends = any(v.depends for v in read)
        value.carries = carries(node, read)
        if not value.is_tensor:
            node.attributes["target"] = c.target
        constants = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Constant)]
        found = (
            faults.random_numbers(c.name, c.path),
            faults.complex_numbers(inputs, c.name, c.path),
            faults.number_from_data(fx, c.name, c.path),
            faults.strides(fx, c.name, c.path),
            *(constant.fault for constant in constants),
        )
        fault = next(filter(None, found), None)
        if fault:
            node.attributes["fault"] = fault
        node.kind = KIND[kind].read(node, bind(c.target, args, kwargs)) or kind
        value.producer = node
        self.graph.nodes.append(node)
        return value


def _part_of_whole(c: Call, whole: Node, position: int) -> tuple[Call, str]:
    """One part of a chunk, split or unbind as a move of its own, straight from the whole; and its name for rewrites."""
    target, call = whole.attributes.get("target"), part(whole.call, position)
    made = Call(c.fx, whole.operation, call, whole.args, whole.kwargs, target, c.path, c.module_type)
    return made, f"{whole.operation}.{position}"


def _unread(c: Call) -> tuple[int, ...]:
    """Positions of arguments of which sizes alone are read; a write has what it writes behind the first one."""
    if isinstance(c.call, Write):
        return tuple(i + 1 for i in UNREAD.get(c.name.removesuffix("_scatter"), ()) if i)
    return UNREAD.get(c.name, ())


def _tensors(fx: torch.fx.Node) -> list[Tensor]:
    """What export says of an operation's results."""
    meta = fx.meta.get("val")
    return [t for t in (meta if isinstance(meta, (tuple, list)) else (meta,)) if isinstance(t, Tensor)]
