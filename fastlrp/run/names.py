"""Names of what a record gives relevance of: layers by module path or call, and the model's inputs."""

from __future__ import annotations

import difflib
from typing import Any

from fastlrp.capture.graph import Value
from fastlrp.plan.plan import Plan
from fastlrp.run.inputs import Inputs


def input_values(plan: Plan, inputs: Inputs) -> dict[str, Value]:
    """The inputs that relevance reaches: ``"input"``, or ``"input.name"`` for several."""
    values = plan.explained_inputs()
    if len(values) == 1:
        return {"input": values[0]}
    return {f"input.{inputs.names[plan.graph.inputs.index(v)]}": v for v in values}


def layer_names(plan: Plan) -> list[str]:
    """Modules without children by path, functional calls as ``path.operation``, in execution order."""
    modules = plan.graph.modules
    inner = {path for path in modules if any(other.startswith(f"{path}.") for other in modules)}
    leaves = {path: value for path, value in modules.items() if path not in inner}
    place = {node.output: i for i, node in enumerate(plan.graph.nodes)}
    reached = plan.flows
    named = {**leaves, **plan.calls()}
    found = [(place[v], name) for name, v in named.items() if v in reached and v in place and v.has_batch_first]
    return [name for _, name in sorted(found)]


def layer_values(plan: Plan, layers: Any) -> dict[str, Value]:
    """The layers that are asked for and the output; nothing if ``layers`` is None.

    Raises:
        KeyError: for a layer that there is not, or that no relevance reaches. TypeError: if ``layers`` is no name, list
        of names or ``"all"``.
    """
    if layers is None:
        return {}
    names: dict[str, Value] = {}
    reached, modules = plan.flows, plan.graph.modules
    known = {p: v for p, v in modules.items() if v in reached}
    if isinstance(layers, str):
        layers = list(known) if layers == "all" else [layers]
    elif not isinstance(layers, (list, tuple, set)) or not all(isinstance(p, str) for p in layers):
        hint = f", such as {next(iter(modules), 'output')!r}: paths are those of model.named_modules()"
        raise TypeError(f"layers must be a module path, a list of them or 'all', got {layers!r}{hint}")
    if any(path not in known for path in layers):
        known = {p: v for p, v in plan.calls().items() if v in reached} | known
    for path in layers:
        if path in ("input", "output"):
            continue
        if path not in known:
            raise KeyError(_unknown_layer(path, known, modules))
        names[path] = known[path]
    names["output"] = plan.graph.output
    return names


def _unknown_layer(path: str, known: dict[str, Value], modules: dict[str, Value]) -> str:
    if path in modules:
        return f"no relevance reaches the output of layer {path!r}: the explained output does not depend on it"
    close = difflib.get_close_matches(path, list(known), 3)
    hint = f"; did you mean {', '.join(close)}?" if close else "."
    return f"unknown layer {path!r}{hint} Known: {', '.join(list(known)[:12])}{', …' if len(known) > 12 else ''}"
