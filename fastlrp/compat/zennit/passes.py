"""Brings a captured model into the form in which Zennit sees it: one operation for each module that has a hook.

Zennit's hooks stand on modules and replace what happens between a module's input and its output, whatever that is. A
module that is one operation keeps it. One that is several becomes a single operation of kind ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.canonizers import fold_batch_norm, norm_scale_shift
from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.compat.zennit import notices
from fastlrp.compat.zennit.choose import Hooked, scaled
from fastlrp.errors import UnsupportedOperationError, module_text
from fastlrp.kinds.registry import RULED_KINDS
from fastlrp.rules import Norm

_CARRIES = ("move", "cat")
_ONLY_PLAIN = ("Flat", "WSquare", "ZBox")
"""Rules that replace the layer's input, so that they see a padding that the module does itself."""


def canonical_paths(model: nn.Module) -> dict[str, str]:
    """Every name of every module -> the first one, which is what ``named_modules`` and Zennit call it."""
    first: dict[int, str] = {}
    return {path: first.setdefault(id(m), path) for path, m in model.named_modules(remove_duplicate=False)}


class Modules:
    """The graph of one capture, module by module."""

    def __init__(self, graph: Graph, model: nn.Module, hooks: dict[str, Hooked]) -> None:
        self.graph, self.model, self.hooks = graph, model, hooks
        self.names = canonical_paths(model)
        for node in graph.nodes:
            node.path = self.names.get(node.path, node.path)

    def settle(self) -> None:
        """Give every hooked module one operation that takes its rule.

        Raises:
            UnsupportedOperationError: for a hook on a module that has several inputs or outputs, whose inner modules
                have hooks too, or that does nothing.
        """
        for hooked in self.hooks.values():  # Parents before children.
            outputs = list(dict.fromkeys(self._outputs(hooked.path)))
            inside = [n for n in self.graph.nodes if _within(n.path, hooked.path)]
            if not outputs or not inside:
                self._nothing(hooked, bool(outputs))
                continue
            done: set[Node] = set()
            calls = 0
            for output in outputs:
                region = self._region(hooked.path, output, set(outputs) - {output})
                done.update(region)
                calls += bool(region)
                self._one(hooked, region, output)
            if any(node not in done for node in inside):
                raise _refused(hooked, "it computes something besides what it returns")
            name = None if hooked.recognised is None else hooked.recognised.name
            notices.several_calls(hooked.template, hooked.path, name, calls)

    def _outputs(self, path: str) -> Iterator[Value]:
        """What each call of the module returned."""
        if path == "":
            yield self.graph.output
        for key, value in self.graph.modules.items():
            name, at, call = key.rpartition("@")
            if self.names.get(name if at and call.isdigit() else key) == path:
                yield value

    def _nothing(self, hooked: Hooked, called: bool) -> None:
        called = called or isinstance(hooked.module, nn.Identity)
        if called and not hooked.passes and not self._gone(hooked.path):
            raise _refused(hooked, "the module does nothing in evaluation mode, so there is no place for a rule")

    def _gone(self, path: str) -> bool:
        """Whether an enclosing module with a hook of its own has taken the place of this one."""
        return any(path != other and _within(path, other) for other in self.hooks)

    def _region(self, path: str, output: Value, stops: set[Value]) -> list[Node]:
        found: set[Node] = set()
        todo = [output]
        while todo:
            node = todo.pop().producer
            if node is not None and node not in found and _within(node.path, path):
                found.add(node)
                todo += [v for v in node.inputs if v not in stops]
        return [node for node in self.graph.nodes if node in found]

    def _one(self, hooked: Hooked, region: list[Node], output: Value) -> None:
        if not region:  # A later call that returned what an earlier one had returned.
            return
        made = {node.output for node in region}
        entering = list(dict.fromkeys(v for node in region for v in node.inputs if v not in made))
        if sum(v.is_differentiable for v in entering) != 1:
            raise _refused(hooked, "the module has several inputs with relevance, and a hook gives relevance to one")
        rest = [n for n in self.graph.nodes if n not in set(region)]
        read = {v for n in rest for v in n.inputs} | set(self.graph.outputs)
        if (made - {output}) & read:
            raise _refused(hooked, "the module has several outputs, and a hook takes the relevance of one")
        inner = [p for p in self.hooks if p != hooked.path and any(_within(n.path, p) for n in region)]
        inner = [p for p in inner if _within(p, hooked.path)]
        if inner and not hooked.passes:
            raise _refused(
                hooked, f"modules inside it have hooks too ({', '.join(map(repr, inner[:3]))}): give it or them a hook"
            )
        kept = None if inner else self._kept(hooked, region)
        if kept is not None:
            kept.path = hooked.path
            return
        if hooked.passes and next(v for v in entering if v.is_differentiable).shape != output.shape:
            raise _refused(hooked, "its input and its output have different shapes, so relevance cannot pass unchanged")
        self._contract(hooked, region, entering, output)

    def _kept(self, hooked: Hooked, region: list[Node]) -> Node | None:
        """The one operation in the module that takes its hook's rule as it stands, if there is one."""
        ruled = [node for node in region if node.kind in RULED_KINDS]
        if len(ruled) != 1:
            return None
        node = ruled[0]
        plain = all(other is node or other.kind in _CARRIES for other in region)
        if node.kind not in ("conv", "linear"):
            return node if len(region) == 1 else None
        rule = hooked.for_weight() if self._owns(hooked.module, node) else None
        if rule is None or not plain:
            # Epsilon and the like only divide; what replaces the weight must be given the module's own.
            return node if len(region) == 1 and hooked.passes else None
        assert hooked.recognised is not None
        return node if len(region) == 1 or hooked.recognised.name not in _ONLY_PLAIN else None

    @staticmethod
    def _owns(module: nn.Module, node: Node) -> bool:
        """Whether the operation's weight and bias are the module's own parameters, and not computed from them."""
        pairs = [(node.attributes[key], module._parameters.get(key)) for key in ("weight", "bias")]
        return all(
            own is None if given is None else isinstance(given, Constant) and given.source is own
            for given, own in pairs
        )

    def _contract(self, hooked: Hooked, region: list[Node], entering: list[Value], output: Value) -> None:
        graph = self.graph
        name = type(hooked.module).__name__
        inputs = tuple(entering)
        whole = Node("unknown", name, _Whole(region, inputs, output), inputs, {}, inputs, output, hooked.path,
                     type(hooked.module))  # fmt: skip
        graph.nodes[graph.nodes.index(region[-1])] = whole
        graph.nodes = [node for node in graph.nodes if node not in set(region)]
        output.producer = whole
        hidden = {node.output for node in region} - {output}
        graph.modules = {path: v for path, v in graph.modules.items() if v not in hidden}

    def sums_of_stacks(self) -> None:
        """``sum(stack([a, b], -1), -1)``, as Zennit's canonizers write a residual sum, is ``a + b``: one kernel."""
        consumers = self.graph.consumers()
        for node in list(self.graph.nodes):
            terms = _stacked(node)
            if terms is None:
                continue
            stack = node.inputs[0].producer
            hooked = self.hooks.get(node.path)
            kept = hooked is None or isinstance(hooked.rule("add", "add"), Norm)
            if stack is None or stack.output in self.graph.outputs or len(consumers[stack.output]) > 1 or not kept:
                continue
            add = Node("add", "add", torch.ops.aten.add.Tensor, terms, {}, terms, node.output, node.path,
                       node.module_type, {"alpha": 1, "terms": tuple((v, 1) for v in terms)})  # fmt: skip
            node.output.producer = add
            self.graph.nodes[self.graph.nodes.index(node)] = add
            self.graph.nodes.remove(stack)
            # What stood for the stacked tensor in the list of modules is gone.
            self.graph.modules = {p: v for p, v in self.graph.modules.items() if v is not stack.output}

    def merged_batch_norms(self) -> dict[str, float]:
        """Fold the batch norms that Zennit's canonizers have left behind: identities but for ``1 / sqrt(1 + eps)``.

        Zennit 1.0.0 leaves them with an eps of 0.

        Exact with a stabilizer of the same factor, see :func:`fastlrp.compat.zennit.choose.scaled`.

        Returns:
            the factor by path of the layer that it was folded into.
        """
        consumers = self.graph.consumers()
        norms = [node for node in self.graph.nodes if node.kind == "batch_norm"]
        factors = {node: self._left_behind(node, consumers) for node in norms}
        hidden = [node for node, factor in factors.items() if factor is None]
        before = {node: node.inputs[0].producer for node in factors}
        for node in hidden:
            node.kind = "unknown"
        fold_batch_norm(self.graph)
        for node in hidden:
            node.kind = "batch_norm"
        found: dict[str, float] = {}
        for node, factor in factors.items():
            layer = before[node]
            if factor is not None and layer is not None and layer.attributes.get("norm") is node:
                found[layer.path] = factor
        return found

    def _left_behind(self, node: Node, consumers: dict[Value, list[Node]]) -> float | None:
        """What the batch norm multiplies with, if that is all it does and the layer before it can take it."""
        hooked, layer = self.hooks.get(node.path), node.inputs[0].producer
        if hooked is None or not hooked.passes or layer is None:
            return None
        if layer.kind != "conv" and (layer.kind != "linear" or len(layer.output.shape) != 2):
            return None
        above = self.hooks.get(layer.path)
        once = sum(other.path == layer.path for other in self.graph.nodes) == 1
        only = len(consumers[layer.output]) == 1 and layer.output not in self.graph.outputs
        rule = above.for_weight() if above is not None and once and only else None
        scale, shift = norm_scale_shift(node)
        if rule is None or not scale.numel() or bool((scale != scale[0]).any() | shift.any()):
            return None
        factor = float(scale[0])
        return None if scaled(rule, factor) is None else factor


class _Whole:
    """The forward function of a module that has become one operation."""

    def __init__(self, nodes: list[Node], inputs: tuple[Value, ...], output: Value) -> None:
        self.nodes, self.inputs, self.output = nodes, inputs, output

    def __call__(self, *given: Any) -> Tensor:
        table: dict[Value, Any] = dict(zip(self.inputs, given, strict=True))
        for node in self.nodes:
            table[node.output] = bind_forward(node)(*(table[v] for v in node.inputs))
        result: Tensor = table[self.output]
        return result


def _within(path: str, module: str) -> bool:
    return module == "" or path == module or path.startswith(f"{module}.")


def _stacked(node: Node) -> tuple[Value, Value] | None:
    """The two terms of a sum over the axis along which they were stacked."""
    if node.operation != "sum" or len(node.args) < 2 or node.kwargs or any(node.args[2:]):
        return None
    stack = node.inputs[0].producer
    if stack is None or stack.operation != "stack" or len(stack.args[0]) != 2:
        return None
    dims, axes = node.args[1], len(stack.output.shape)
    a, b = stack.args[0]
    if not (isinstance(a, Value) and isinstance(b, Value) and a is not b and a.dtype == b.dtype):
        return None
    if not isinstance(dims, (list, tuple)) or [d % axes for d in dims] != [stack.attributes["dim"] % axes]:
        return None
    return a, b


def _refused(hooked: Hooked, reason: str) -> UnsupportedOperationError:
    name = type(hooked.template).__name__
    return UnsupportedOperationError(
        f"Zennit's hook {name} on {module_text(hooked.path)} ({type(hooked.module).__name__}) cannot be "
        f"translated: {reason}. Ways out: let the composite's module_map return None or another hook for this module "
        "(a NameMapComposite in front of it does), or explain the model with a fastlrp composite"
    )
