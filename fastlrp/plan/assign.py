"""Which rule each node of a graph gets: from the composite, its kind, or :func:`register_rule`."""

from __future__ import annotations

from fastlrp import rules
from fastlrp.capture.graph import Graph, Node
from fastlrp.composites import Composite, Layer
from fastlrp.composites.unused import NotRuled, known_name
from fastlrp.kinds.head_numbers import number_heads
from fastlrp.kinds.registry import KIND, KIND_OF, NAMED_LIKE, RULED_KINDS, WEIGHTED_KINDS
from fastlrp.kinds.vocabulary import REGISTERED

_REGISTERED: dict[str, rules.Rule] = REGISTERED


def register_rule(operation: str, rule: rules.Rule) -> None:
    """Give an operation that fastlrp does not know a rule, for all explainers made from now on.

    Args:
        operation: name without overload, ``"amax"`` or ``"aten::amax"`` for one of ATen's; an operator of another
            namespace by its full name, ``"mylib::amax"``.
        rule: usually a :class:`fastlrp.rules.Custom`; ``Pass`` for element-wise operations; ``Gradient``.

    Raises:
        TypeError: if ``rule`` is not a rule.
        ValueError: for an operation that fastlrp knows: composites decide about those, and one that only moves entries
            takes no rule; for a name without namespace that is none of ATen's.

    Example::

        class Halves(rules.Custom):
            # Half of the relevance to each operand of torch.hypot.
            def propagate(self, forward, inputs, output, relevance):
                return tuple(relevance / 2 for _ in inputs)

        fastlrp.register_rule("hypot", Halves())
    """
    if not isinstance(rule, rules.Rule):
        raise TypeError(f"register_rule needs a fastlrp rule, got {type(rule).__name__}")
    name = known_name(operation)
    if KIND_OF.get(name) in KIND and KIND_OF[name] not in RULED_KINDS:
        raise ValueError(
            f"{name!r} (kind {KIND_OF[name]!r}) takes no rule: it only carries entries from one place to another, or "
            "does nothing when a model is evaluated, and relevance goes the way of the entries"
        )
    if not registrable(name):
        raise ValueError(
            f"fastlrp knows {name!r} (kind {KIND_OF[name]!r}), so its rule comes from the composite: "
            f"use composite.with_entries((fastlrp.composites.operation({name!r}), rule))"
        )
    _REGISTERED[name] = rule


def registrable(operation: str) -> bool:
    """True for names that fastlrp does not know, and for those of layers, which products of activations have too."""
    return KIND_OF.get(operation) in (None, *WEIGHTED_KINDS)


def assign_rules(graph: Graph, composite: Composite) -> dict[Node, rules.Rule | None]:
    """The rule of every node that needs one; None where neither composite nor registry has any."""
    weighted = [node for node in graph.nodes if node.kind in ("conv", "linear")]
    position = {node: i for i, node in enumerate(weighted)}
    seen: dict[str, int] = {}
    assigned: dict[Node, rules.Rule | None] = {}
    layers: list[Layer] = []
    missing = rules.InputGradient(missing=True) if composite.unsupported == "gradient" else None
    for node in graph.nodes:
        if node.kind not in RULED_KINDS:
            continue
        kind_index = seen.get(node.kind, 0)
        seen[node.kind] = kind_index + 1
        layer = Layer(
            node.path, node.module_type, node.operation, node.kind, position.get(node), len(weighted), kind_index,
            NAMED_LIKE.get(node.operation),
        )  # fmt: skip
        layers.append(layer)
        rule = composite.rule_for(layer)
        assigned[node] = rule or KIND[node.kind].fallback or _REGISTERED.get(node.operation) or missing
    composite.check_paths(layers)
    composite.check_used(layers, _not_ruled(graph))
    number_heads(graph, (node for node, rule in assigned.items() if isinstance(rule, rules.Heads)))
    return assigned


def _not_ruled(graph: Graph) -> list[NotRuled]:
    """The operations of the model that take no rule: they carry entries, or other nodes stand for them."""

    def seen(path: str, module_type: type | None, operation: str, kind: str) -> Layer:
        return Layer(path, module_type, operation, kind, None, 0, -1, NAMED_LIKE.get(operation))

    carrying = [
        NotRuled(seen(n.path, n.module_type, n.operation, n.kind))
        for n in graph.nodes
        if n.kind not in RULED_KINDS and n.output.is_differentiable
    ]
    written = [
        NotRuled(
            seen(w.path, w.module_type, w.operation, w.parts[-1][1] if w.parts else "identity"),
            tuple(seen(w.path, w.module_type, *part) for part in w.parts),
        )
        for w in graph.written
    ]
    return carrying + written
