"""From an exported program to our graph: inputs and weights, memory that several values share, module paths."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from fastlrp.capture import faults
from fastlrp.capture.arguments import bind
from fastlrp.capture.carrying import mark_ids
from fastlrp.capture.graph import Constant, Graph, Value, leaves
from fastlrp.capture.trace import functions, padded
from fastlrp.capture.translate.calls import operation, part, written_operands
from fastlrp.capture.translate.emit import Call, Emitter
from fastlrp.capture.translate.mapped import join_mapped
from fastlrp.capture.translate.mask_sizes import settle_mask_sizes
from fastlrp.capture.translate.memory import Memory, View, Write
from fastlrp.capture.translate.metadata import is_recurrent, same_dtype
from fastlrp.capture.translate.module_paths import OUTPUT, WRAPPED, calls_around, innermost
from fastlrp.capture.translate.overlap import overlap
from fastlrp.capture.translate.pairs import Pair
from fastlrp.errors import CaptureError, UnsupportedOperationError
from fastlrp.kinds.vocabulary import plain_name


class Translator:
    """Turns an exported program's nodes into ours, one by one."""

    def __init__(self, program: torch.export.ExportedProgram, model: nn.Module, fixed: bool, batch: int) -> None:
        self.program = program
        self.model = model
        self.env: dict[str, Any] = {}
        self.nodes: dict[str, torch.fx.Node] = {}
        self.memory = Memory()
        self.state: dict[str, str] = {}
        self.written_state: dict[str, torch.fx.Node] = {}
        self.blocks: dict[str, tuple[list[str], list[bool]]] = {}  # What each gives, and whether gradients end there.
        self.stops = False  # Whether what is followed stands under no_grad.
        self.inputs: list[Value] = []
        empty = Value(-1, "", (), None)
        self.graph = Graph([], self.inputs, [], empty, {}, 0, batch if fixed else None)
        self.emitter = Emitter(self.graph, self.graph.batch)

    def translate(self) -> Graph:
        join_mapped(self.program)
        self.emitter.known, self.graph.counted = settle_mask_sizes(self.program, self.model)
        for spec in self.program.graph_signature.input_specs:
            self._placeholder(spec)
        returned = self._follow(self.program.graph, self.program.graph_module)
        mutated = len(returned) - len(self.program.graph_signature.user_outputs)
        self.graph.outputs = [self._as_value(v, i) for i, v in enumerate(returned[mutated:])]
        self.graph.drop_dead()
        mark_ids(self.graph)
        self._refuse_state()
        self._refuse_faults()
        return self.graph

    def _follow(self, graph: torch.fx.Graph, owner: torch.fx.GraphModule) -> list[Any]:
        """Translate a graph's nodes in order; what it returns."""
        returned: list[Any] = []
        for fx in graph.nodes:
            self.nodes[fx.name] = fx
            if fx.op == "call_function":
                self._call(fx, owner)
                self._remember_modules(fx)
            elif fx.op == "output":
                found = self._resolve(fx.args[0])
                returned = list(found) if isinstance(found, (tuple, list)) else [found]
            elif fx.op not in ("placeholder", "get_attr"):
                raise CaptureError(f"cannot follow {fx.op} {fx.name} in the captured model")
        return returned

    def _as_value(self, item: Any, position: int) -> Value:
        if isinstance(item, Value):
            return item
        if isinstance(item, Pair):
            return self.emitter.complex_output(item)
        raise CaptureError(f"output {position} of the model does not depend on its input: there is nothing to explain")

    def _placeholder(self, spec: Any) -> None:
        name: str = spec.arg.name
        fx = next(n for n in self.program.graph.nodes if n.name == name)
        self.memory.add(fx)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            path = spec.target.removeprefix(f"{WRAPPED}.")
            owner, _, key = path.rpartition(".")
            module = self.model.get_submodule(owner)
            tensor = getattr(module, key)
            self.env[name] = Constant(path, tensor)
            self.state[name] = path
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            tensor = self.program.constants[spec.target]
            self.env[name] = Constant(spec.target, tensor)
        elif spec.kind == InputKind.USER_INPUT:
            meta = fx.meta.get("val")
            if isinstance(meta, Tensor):
                value = self.graph.new_value(name, self.emitter.shape(meta), meta.dtype)
                self.inputs.append(value)
                self.env[name] = value
            else:
                self.env[name] = getattr(spec.arg, "value", None)
        else:
            raise CaptureError(
                f"the forward pass gives an operation an object that is no tensor ({name}), such as a torch.Generator: "
                "draw random numbers outside and keep them as a buffer, or pass them as an input"
            )

    def _resolve(self, tree: Any) -> Any:
        if isinstance(tree, torch.fx.Node):
            for name in self.memory.to_renew(tree.name):
                self._renew(name)
            if tree.name not in self.env:
                raise CaptureError(f"cannot follow '{tree}' ({tree.op}) in the captured model")
            return self.env[tree.name]
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._resolve(item) for item in tree)
        if isinstance(tree, dict):
            return {key: self._resolve(item) for key, item in tree.items()}
        return tree

    # Operations

    def _call(self, fx: torch.fx.Node, owner: torch.fx.GraphModule) -> None:
        if isinstance(fx.target, torch._ops.HigherOrderOperator):
            self._call_graph(fx, owner)
            return
        path, module_type = self._module_of(fx)
        self._refuse_written_state(fx, path)
        name, call, in_place = operation(fx.target)
        call = padded.valid_steps if name == padded.VALID else call
        if name == functions.MARK:
            name, call = "custom_backward", functions.Marked(fx.meta[functions.MARK])
        args, kwargs = self._resolve(fx.args), self._resolve(fx.kwargs)
        self.memory.add(fx)
        of_data = name != "batch_norm" or any(isinstance(v, Value) for v in leaves((args, kwargs)))
        trains = faults.training_mode(name, bind(fx.target, args, kwargs), path, of_data)
        if trains:
            raise CaptureError(trains)
        c = Call(fx, name, call, args, kwargs, fx.target, path, module_type)
        made = self.emitter.emit_call(c)
        in_place = in_place and "dropout" not in name  # In evaluation, which writes nothing.
        if in_place:
            self._refuse_overlap(fx, name, path)
        if in_place and isinstance(made, (Value, Constant)):
            made = self._same_kind(made, fx)
        if in_place and self.stops:
            made = self.emitter.detached(made, fx, args[0])  # What is written is no part of the block's results.
        self.env[fx.name] = made
        parent = self.memory.parent(fx, name, in_place)
        if parent is not None:
            self._note_view(fx, parent, name, in_place)
        if in_place:
            self._write_back(fx, path, module_type)

    def _call_graph(self, fx: torch.fx.Node, owner: torch.fx.GraphModule) -> None:
        """A block under no_grad or autocast is followed as if its operations stood in its place."""
        target: Any = fx.target
        name = str(target.name() if callable(getattr(target, "name", None)) else target)
        inner = next((a for a in fx.args if isinstance(a, torch.fx.Node) and a.op == "get_attr"), None)
        if name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast") or inner is None:
            raise CaptureError(faults.function_of_functions(name, self._module_of(fx)[0]))
        if name == "wrap_with_autocast" and fx.args[2]:
            raise CaptureError(faults.autocast(self._module_of(fx)[0]))
        graph = getattr(owner, str(inner.target))
        given = fx.args[fx.args.index(inner) + 1 :]
        holes = [n for n in graph.graph.nodes if n.op == "placeholder"]
        for hole, operand in zip(holes, given, strict=True):
            self.env[hole.name] = self._resolve(operand)
            self.nodes[hole.name] = hole
            self.memory.add(hole)
            if isinstance(operand, torch.fx.Node) and hole.name != operand.name:
                self.memory.views[hole.name] = View(operand.name, "", None, (), {})
        before, stops = self.stops, name == "wrap_with_set_grad_enabled" and not fx.args[0]
        self.stops = stops or (before and name != "wrap_with_set_grad_enabled")
        found = self._follow(graph.graph, graph)
        self.stops = before
        returned: Any = next(n for n in graph.graph.nodes if n.op == "output").args[0]
        names = ["" if not isinstance(n, torch.fx.Node) else n.name for n in returned]
        outside = {hole.name for hole in holes}
        ends = [stops and self.memory.itself(name) not in outside for name in names]
        self.env[fx.name] = tuple(self.emitter.detached(v, fx) if e else v for v, e in zip(found, ends, strict=True))
        self.blocks[fx.name] = names, ends

    # Memory that several values share

    def _note_view(self, fx: torch.fx.Node, parent: torch.fx.Node, name: str, in_place: bool) -> None:
        same = in_place or self.env[fx.name] is self.env[parent.name]
        if same:
            view = View(parent.name, name, None, (), {})
        elif name == "getitem" and isinstance(fx.args[0], torch.fx.Node) and fx.args[0].name in self.blocks:
            names, ends = self.blocks[fx.args[0].name]
            result, stops = names[int(str(fx.args[1]))], ends[int(str(fx.args[1]))]
            if result == fx.name:
                return  # Named as inside of the block, whose view stays.
            end = torch.ops.aten.detach.default if stops else None
            view = View(result, "detach" if stops else "", end, (), {})
        elif name == "getitem":
            whole: Any = fx.args[0]
            called, call, _ = operation(whole.target)
            view = View(parent.name, called, part(call, int(str(fx.args[1]))), self._resolve(whole.args[1:]),
                        self._resolve(whole.kwargs))  # fmt: skip
        else:
            view = View(parent.name, name, operation(fx.target)[1], self._resolve(fx.args[1:]),
                        self._resolve(fx.kwargs))  # fmt: skip
        self.memory.views[fx.name] = view

    def _renew(self, name: str) -> None:
        """Take a view again from what its memory holds now."""
        view, fx = self.memory.views[name], self.nodes[name]
        base = self.env[view.parent]
        if view.call is not None:
            path, type_ = self._module_of(fx)
            base = self.emitter.emit(Call(fx, view.name, view.call, (base, *view.rest), view.kwargs, None, path, type_))
        self.env[name] = base

    def _same_kind(self, made: Value | Constant, fx: torch.fx.Node) -> Value | Constant:
        """What an in-place operation leaves has the dtype of what it wrote into."""
        if isinstance(made, Value) and not same_dtype(fx, made) and isinstance(fx.meta.get("val"), Tensor):
            to = torch.ops.aten.to.dtype
            dtype = fx.meta["val"].dtype
            path, type_ = self._module_of(fx)
            return self.emitter.make(Call(fx, "to", to, (made, dtype), {}, to, path, type_), "move")
        return made

    def _write_back(self, fx: torch.fx.Node, path: str, module_type: type | None) -> None:
        """After an in-place operation, everything that its operand was a view of holds the new entries."""
        new = self.env[fx.name]
        for view in self.memory.written(fx):
            if view.call is not None:
                new = self._written(view, new, path, module_type)
            self.env[view.parent] = new
        root = self.memory.root(fx.name)
        if root in self.state:
            self.written_state.setdefault(root, fx)

    def _written(self, view: View, new: Any, path: str, module_type: type | None) -> Any:
        base, base_fx = self.env[view.parent], self.nodes[view.parent]
        if (
            view.name == "slice"
            and isinstance(new, (Value, Pair))
            and type(new) is type(base)
            and new.shape == base.shape
        ):
            return new  # The whole axis was sliced.
        if view.name == "custom_backward":
            return new
        if view.name == "detach":
            return self.emitter.detached(new, base_fx, base)
        assert view.call is not None
        args = (base, new, *view.rest)
        return self.emitter.emit(
            Call(base_fx, f"{view.name}_scatter", Write(view.call), args, view.kwargs, None, path, module_type)
        )

    # Refusals

    def _refuse_overlap(self, fx: torch.fx.Node, name: str, path: str) -> None:
        whole, view = [], fx.all_input_nodes[0].name
        while view in self.memory.views:
            view = self.memory.views[view].parent
            whole.append(self.nodes[view])
        fault = overlap(fx, whole, name, path)
        if fault:
            raise CaptureError(fault)

    def _refuse_faults(self) -> None:
        for node in self.graph.nodes:
            if "fault" in node.attributes:
                raise UnsupportedOperationError(node.attributes["fault"])

    def _refuse_written_state(self, fx: torch.fx.Node, path: str) -> None:
        """An operation that writes a result into a buffer given to it, as ``normalize(…, out=u)`` does."""
        for written in written_operands(fx):
            root = self.memory.root(written.name)
            if root in self.state:
                name = plain_name(str(fx.target))
                raise CaptureError(faults.changed_state(self.state[root], name, path, self.model))

    def _refuse_state(self) -> None:
        """A buffer that the forward pass changes makes the next output another one, unless nothing reads it."""
        for root, fx in self.written_state.items():
            for node, other in self.nodes.items():
                if self.memory.root(node) == root and any(self.memory.root(r.name) != root for r in other.users):
                    name, module = operation(fx.target)[0], self._module_of(fx)[0]
                    raise CaptureError(faults.changed_state(self.state[root], name, module, self.model))

    # Modules

    def _module_of(self, fx: torch.fx.Node) -> tuple[str, type | None]:
        path = innermost(fx)
        return path, None if path == OUTPUT else type(self.model.get_submodule(path))

    def _remember_modules(self, fx: torch.fx.Node) -> None:
        found = self.env.get(fx.name)
        value = found.parts if isinstance(found, Pair) else found
        if not isinstance(value, Value) or not value.is_tensor:
            return
        if fx.target is operator.getitem and fx.args[1] != 0 and is_recurrent(fx.args[0]):
            return  # The module's value is its output, not the last states.
        if fx.target is operator.getitem and not fx.users:
            return  # A result that nobody reads, as the places of the largest.
        self.graph.modules.update(dict.fromkeys(calls_around(fx), value))
