"""From an exported program to our graph, node by node: constants, in-place operations, module paths."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from fastlrp.errors import CaptureError
from fastlrp.geometry import bind, describe
from fastlrp.graph import Constant, Graph, Node, Value, leaves
from fastlrp.vocabulary import KIND_OF

WRAPPED = "model"
"""Name under which capture's wrapper holds the user's model."""

_COPIES_IF_NEEDED = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.view_as.default: torch.ops.aten.reshape_as.default,
}


class Translator:
    """Turns an exported program's nodes into ours, one by one."""

    def __init__(self, program: torch.export.ExportedProgram, model: nn.Module, fixed: bool, batch: int) -> None:
        self.program = program
        self.model = model
        self.batch = batch if fixed else None
        self.env: dict[str, Any] = {}
        self.views: dict[str, set[str]] = {}
        self.order: dict[str, int] = {n.name: i for i, n in enumerate(program.graph.nodes)}
        self.inputs: list[Value] = []
        empty = Value(-1, "", (), None)
        self.graph = Graph([], self.inputs, [], empty, {}, 0)

    def translate(self) -> Graph:
        for spec in self.program.graph_signature.input_specs:
            self._placeholder(spec)
        for fx in self.program.graph.nodes:
            if fx.op == "call_function":
                self._call(fx)
                self._remember_modules(fx)
            elif fx.op == "output":
                returned = [self.env.get(a.name) if isinstance(a, torch.fx.Node) else a for a in fx.args[0]]
                mutated = len(returned) - len(self.program.graph_signature.user_outputs)
                self.graph.outputs = [self._as_value(v, i) for i, v in enumerate(returned[mutated:])]
            elif fx.op not in ("placeholder", "get_attr"):
                raise CaptureError(f"cannot follow {fx.op} {fx.name} in the captured model")
        self.graph.drop_dead()
        return self.graph

    def _as_value(self, item: Any, position: int) -> Value:
        if isinstance(item, Value):
            return item
        raise CaptureError(f"output {position} of the model does not depend on its input: there is nothing to explain")

    def _placeholder(self, spec: Any) -> None:
        name: str = spec.arg.name
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            path = spec.target.removeprefix(f"{WRAPPED}.")
            owner, _, key = path.rpartition(".")
            module = self.model.get_submodule(owner)
            self.env[name] = Constant(path, getattr(module, key))
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            self.env[name] = Constant(spec.target, self.program.constants[spec.target])
        elif spec.kind == InputKind.USER_INPUT:
            fx = next(n for n in self.program.graph.nodes if n.name == name)
            meta = fx.meta.get("val")
            if isinstance(meta, Tensor):
                value = self.graph.new_value(name, self._shape(meta), meta.dtype)
                self.inputs.append(value)
                self.env[name] = value
            else:
                self.env[name] = getattr(spec.arg, "value", None)
        else:
            raise CaptureError(f"the captured model takes an input of an unknown kind: {spec.kind}")

    def _shape(self, meta: Tensor) -> tuple[int | str | None, ...]:
        sizes: list[int | str | None] = []
        for axis, n in enumerate(meta.shape):
            if isinstance(n, torch.SymInt):
                symbol = n.node.expr
                if getattr(symbol, "is_Integer", False):  # How many entries a constant mask takes.
                    sizes.append(int(symbol))
                    continue
                sizes.append(None if axis == 0 and getattr(symbol, "is_Symbol", False) else str(symbol))
            else:
                sizes.append(None if axis == 0 and self.batch is not None and n == self.batch else int(n))
        return tuple(sizes)

    def _resolve(self, tree: Any) -> Any:
        if isinstance(tree, torch.fx.Node):
            return self.env[tree.name]
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._resolve(item) for item in tree)
        if isinstance(tree, dict):
            return {key: self._resolve(item) for key, item in tree.items()}
        return tree

    def _call(self, fx: torch.fx.Node) -> None:
        path, module_type = self._module_of(fx)
        args, kwargs = self._resolve(fx.args), self._resolve(fx.kwargs)
        name, call, in_place = _operation(fx.target)
        if name == "getitem" and isinstance(args[0], Value) and args[0].producer is not None:
            # One part of a chunk, split or unbind: a move of its own, straight from the whole.
            whole = args[0].producer
            args, kwargs, call, name = whole.args, whole.kwargs, _part(whole.call, args[1]), whole.operation
        operands = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, (Value, Constant))]
        if not any(isinstance(leaf, Value) for leaf in operands) and name not in ("sym_size",):
            self.env[fx.name] = _fold(fx, call, args, kwargs)
            self._share(fx, name, args, in_place)
            return
        kind = KIND_OF.get(name, "unknown")
        if kind == "identity" and isinstance(args[0], Value) and not _same_dtype(fx, args[0]):
            kind = "move"  # A conversion to another dtype.
        self._refuse_training(name, args, kwargs, fx, path)
        if kind == "identity" and isinstance(args[0], Value):
            self.env[fx.name] = args[0]
            self._share(fx, name, args, in_place)
            return
        self.env[fx.name] = self._make(fx, kind, name, call, args, kwargs, path, module_type)
        self._share(fx, name, args, in_place)

    def _make(self, fx: Any, kind: str, name: str, call: Any, args: Any, kwargs: Any, path: str, type_: Any) -> Value:
        meta = fx.meta.get("val")
        if isinstance(meta, Tensor):
            value = self.graph.new_value(fx.name, self._shape(meta), meta.dtype)
        else:
            value = self.graph.new_value(fx.name, (), None)
            kind = kind if isinstance(meta, (tuple, list)) else "scalar"
        inputs = tuple(dict.fromkeys(v for v in leaves((args, kwargs)) if isinstance(v, Value)))
        node = Node(kind, name, call, args, kwargs, inputs, value, path, type_)
        describe(node, fx.target)
        value.producer = node
        self.graph.nodes.append(node)
        return value

    def _refuse_training(self, name: str, args: Any, kwargs: Any, fx: Any, path: str) -> None:
        bound = bind(fx.target, args, kwargs)
        if name == "batch_norm" and bound.get("running_mean") is None:
            raise CaptureError(
                f"{name} at '{path}' has no running statistics and takes those of the batch, so that the output of one "
                "sample depends on the others: use track_running_stats=True, or a group or instance norm"
            )
        active = ("dropout" in name and bound.get("train") and bound.get("p", 0) > 0) or (
            name == "batch_norm" and bound.get("training")
        )
        if active:
            raise CaptureError(
                f"{name} at '{path}' is in training mode, so the model's output is random or depends on the rest of "
                "the batch: call model.eval() first"
            )

    def _share(self, fx: torch.fx.Node, name: str, args: Any, in_place: bool) -> None:
        """Note which values share memory; after an in-place operation the readers of the old value mean the new one."""
        source = next((a for a in fx.args if isinstance(a, torch.fx.Node)), None)
        if source is None or not (in_place or KIND_OF.get(name) in ("move", "identity")) or _copies(name, source):
            return
        family = self.views.setdefault(source.name, {source.name})
        family.add(fx.name)
        self.views[fx.name] = family
        if in_place:
            self._rebind(fx, family, args[0])

    def _rebind(self, fx: torch.fx.Node, family: set[str], old: Any) -> None:
        for other in family - {fx.name}:
            if self.env.get(other) is old:
                self.env[other] = self.env[fx.name]
                continue
            node = next(n for n in self.program.graph.nodes if n.name == other)
            if any(self.order[user.name] > self.order[fx.name] for user in node.users):
                raise CaptureError(
                    f"{fx.target} changes a view in place ('{fx.args[0]}') and '{other}', which shares its memory, is "
                    "read later: write the model without this in-place operation"
                )

    def _module_of(self, fx: torch.fx.Node) -> tuple[str, type | None]:
        stack = _module_stack(fx)
        if not stack:
            return "", type(self.model)
        path = _strip(list(stack.values())[-1][0])
        return path, type(self.model.get_submodule(path))

    def _remember_modules(self, fx: torch.fx.Node) -> None:
        value = self.env.get(fx.name)
        if not isinstance(value, Value) or not value.is_tensor:
            return
        for key, (path, _) in _module_stack(fx).items():
            _, at, call = key.rpartition("@")
            name = _strip(path)
            if name:
                self.graph.modules[f"{name}@{call}" if at and call.isdigit() else name] = value


def _module_stack(fx: torch.fx.Node) -> dict[str, tuple[str, Any]]:
    """The model's own modules that the node stands in, outermost first; nodes that torch.export adds name others."""
    stack = fx.meta.get("nn_module_stack") or {}
    return {key: entry for key, entry in stack.items() if entry[0].split("@")[0].split(".")[0] in ("", WRAPPED)}


def _strip(path: str) -> str:
    return path.split("@")[0].removeprefix(WRAPPED).removeprefix(".")


def _same_dtype(fx: torch.fx.Node, value: Value) -> bool:
    return isinstance(fx.meta.get("val"), Tensor) and fx.meta["val"].dtype == value.dtype


def _copies(name: str, source: torch.fx.Node) -> bool:
    """True if the operation's result has memory of its own."""
    if name == "contiguous":
        meta = source.meta.get("val")
        return isinstance(meta, Tensor) and not meta.is_contiguous()
    return name in ("clone", "_to_copy", "lift_fresh_copy")


def _part(call: Callable[..., Any], index: int) -> Callable[..., Any]:
    def part(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)[index]

    part.whole = call  # type: ignore[attr-defined]
    return part


def _operation(target: Any) -> tuple[str, Callable[..., Any], bool]:
    """Plain name, functional form, and whether the original worked in place."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target)), target, False
    name = target._schema.name.split("::")[1]
    if target._schema.is_mutable and name.endswith("_"):
        packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None)
        if packet is not None and target._overloadname in packet.overloads():
            return name[:-1], getattr(packet, target._overloadname), True
    if target._schema.is_mutable:
        raise CaptureError(f"{target} writes into a tensor in place: relevance cannot be traced through it")
    # Capture drops `contiguous` and `clone`, after which a view need not be one.
    return name, _COPIES_IF_NEEDED.get(target, target), False


def _fold(fx: torch.fx.Node, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What depends on constants alone is one constant (a reparametrised weight), or a plain number."""
    if call is operator.getitem and isinstance(args[0], (tuple, list)):
        return args[0][args[1]]
    if not isinstance(fx.meta.get("val"), Tensor):
        return call(*args, **kwargs)

    def compute() -> Tensor:
        bare = torch.utils._pytree.tree_map(lambda a: a.tensor() if isinstance(a, Constant) else a, (args, kwargs))
        with torch.no_grad():
            result: Tensor = call(*bare[0], **bare[1])
        return result

    return Constant(fx.name, compute)
