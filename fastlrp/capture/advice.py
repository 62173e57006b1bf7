"""What errors say about operations that cannot be explained: what is not supported, and ways out that work."""

from __future__ import annotations

from fastlrp.capture.graph import Graph, Node, Value, leaves
from fastlrp.capture.wording import shape_text, without_symbols
from fastlrp.errors import UnsupportedOperationError, module_text

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_RECURRENT_FORM = "it takes sequences (batch, time, channels) of one fixed length, and weights that are parameters"
_PRODUCTS = ("matmul", "bmm", "mm", "einsum", "baddbmm", "addbmm", "scaled_dot_product_attention", "bilinear",
             "_native_multi_head_attention", "_transformer_encoder_layer_fwd")  # fmt: skip

_LOSSES = ("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d")
_EACH_LOSS = "A loss of the whole batch mixes its samples: take one loss for each sample, reduction='none'"

_REASONS = {
    "linalg_inv": "an inverse is no sum, and its entries are no parts among which relevance could be shared: multiply "
                  "with it by torch.linalg.solve, linear in its right side, with a matrix that is a parameter",
    "div": "a quotient that is rounded is a step function, constant between its steps",
    "floor_divide": "a quotient that is rounded is a step function, constant between its steps",
    "vmap": "what torch.vmap maps over another axis than the batch, or maps twice, is one operation: write the batched "
            "operation out",
    "atan2": "an angle is not made of its two coordinates: longer or shorter, they give the same",
    "torchvision::roi_align": "its result has the boxes of all images along axis 0. For a chosen box write it with "
                              "fastlrp.outputs.roi_align, or take fastlrp.outputs.BoxHead for torchvision's R-CNNs",
    "complex_angle": "an angle is not made of real and imaginary part: longer or shorter, they give the same",
    "complex_output": "relevance is defined for real numbers, and the explained output is complex: explain its real or "
                      "imaginary part or its absolute value, output=lambda z: z.abs()",
}  # fmt: skip
"""Why an operation has no rule of its own, where that is more than that nobody has thought of one."""


def is_attention(node: Node) -> bool:
    """True for a product of two activations."""
    operands = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Value) and leaf.is_differentiable]
    several = len(operands) > 1 or "attention" in node.operation
    return node.operation in _PRODUCTS and node.kind in ("unknown", "linear_map", "product") and several


def no_rule(graph: Graph, node: Node, registrable: bool) -> str:
    """The message for an operation without a rule."""
    name, what = node.operation, _why_no_rule(node)
    found = f"no rule for operation '{name}' in module {module_text(node.path)}{_type_name(node)}{what}"
    missing = [v for v in (node.output, *node.sources) if not v.has_batch_first]
    if missing:
        return (
            f"{found}. None can be given either: a tensor of shape {shape_text(missing[0].shape)} does not keep the "
            f"batch as axis 0. {keep_the_batch(graph, node)}"
        )
    rules = []
    if len(node.sources) == len(node.inputs):
        of_products = "fastlrp.rules.Uniform() (half of it to each factor), fastlrp.rules.ValueOnly()"
        rules.append(of_products if node.kind in ("product", "attention") else "a fastlrp.rules.Custom rule")
    if len(node.sources) == 1 and node.sources[0].shape == node.output.shape and not what:
        rules.append("Pass() for an element-wise operation")
    rule = "".join(f"{other}, " for other in rules) + "or " * bool(rules)
    rule += "Gradient() (the derivative, which is no relevance)"
    ways = (
        f"add an entry for it to the composite, composite.with_entries((fastlrp.composites.operation('{name}'), rule))"
    )
    if node.kind != "unknown" and name not in _REASONS and name not in _RECURRENT:
        ways = f"end the composite with a preset, composite | fastlrp.composites.epsilon_plus(); or {ways}"
    if registrable:
        ways += f"; or fastlrp.register_rule('{name}', rule)"
    return (
        f"{found}. Ways out: {ways}; the rule being {rule}. Or let all operations without a rule take input times "
        "gradient, marked as such: Explainer(..., unsupported='gradient')."
    )


def _why_no_rule(node: Node) -> str:
    """What is special about an operation without a rule, with a colon before it; nothing if it is merely unknown."""
    name = node.operation
    if name in _RECURRENT:
        return f": this use of a recurrent layer ({name}) is not supported, {_RECURRENT_FORM}"
    if node.kind in ("product", "attention"):
        return ": a product of two activations (as in attention) is not supported by this composite"
    if is_attention(node):
        return ": a product of two activations (as in attention) is not supported, it has no relevance rule yet"
    if name in _REASONS:
        return f": {_REASONS[name]}"
    if name.startswith("complex_"):
        return ": it is not linear in complex numbers. Write it with real tensors, z.real and z.imag"
    return ""


def mixing(node: Node) -> str:
    """What to do about an operation that mixes samples, where that is more than to keep the batch as axis 0."""
    if node.operation in _RECURRENT:
        return "It is a recurrent layer that takes axis 0 for time: use batch_first=True"
    if node.operation in ("index", "index_put", "gather", "take_along_dim"):
        return (
            "Its index may reach from one sample into another: index each sample with torch.gather along another axis "
            "than 0, or as x[torch.arange(len(x)), index]"
        )
    if is_attention(node) and len(node.sources) > 1:
        return "A product of two activations (as in attention) whose batch stands elsewhere is not supported yet"
    if node.operation in _LOSSES and not node.output.shape:
        return _EACH_LOSS
    if node.operation in ("sort", "argsort"):
        return "To pack sequences, samples need no order: pack_padded_sequence(…, enforce_sorted=False)"
    if node.operation in ("matmul", "mm"):
        return (
            "A product from the left sums over axis 0. For a graph with its nodes along axis 0 use "
            "fastlrp.GraphExplainer, or give the model the input (1, nodes, features)"
        )
    return ""


def refuse_time_first(node: Node) -> None:
    """Raise UnsupportedOperationError for a recurrent layer that runs along axis 0, which is the batch."""
    flags = [a for a in node.args if isinstance(a, bool)]
    if node.operation in _RECURRENT and "cell" not in node.operation and flags and not flags[-1]:
        raise UnsupportedOperationError(
            f"{node} is a recurrent layer that takes axis 0 for time, which is the batch for fastlrp: samples would be "
            "mixed. Use batch_first=True"
        )


def keep_the_batch(graph: Graph, node: Node) -> str:
    """What to do about an operation that moves the batch axis."""
    if node.operation in _LOSSES and not node.output.shape:
        return f"{_EACH_LOSS}."
    sizes = [str(n) for v in (node.output, *node.sources) for n in v.shape]
    if any("data" in without_symbols(n) for n in sizes):
        return (
            "A size is computed from data (by a boolean index, nonzero, or the like): choose entries with torch.where, "
            "or by fixed integer indices."
        )
    recurrent = next((n for n in graph.nodes if n.operation in _RECURRENT and n.kind != "recurrence"), None)
    if recurrent is not None and (node is recurrent or _inside(node, recurrent)):
        return (
            f"The model has a recurrent layer ({recurrent.operation} in '{recurrent.path or 'model'}') in a use that "
            f"is not supported: {_RECURRENT_FORM}."
        )
    if graph.not_lifted:
        return f"{graph.not_lifted}. Keep the batch as axis 0."
    found = next((n for n in graph.nodes if is_attention(n)), None)
    if found is not None:
        needs = "not supported: it has no relevance rule yet"
        if found.kind == "product":
            needs = "not supported where the batch stands in another place than axis 0"
        return (
            f"The model has attention ({found.operation} in '{found.path or 'model'}'), a product of two activations, "
            f"which is {needs}."
        )
    return "Keep the batch as axis 0."


def _inside(node: Node, other: Node) -> bool:
    """True if ``node`` stands beside ``other``: they are linked by operations that only move entries."""
    seen, todo = set(), [node.output, *node.sources]
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer
        if producer is other:
            return True
        if producer is not None and producer.kind == "move":
            todo += producer.sources
    return any(isinstance(leaf, Value) and leaf in seen for leaf in leaves(other.args))


def _type_name(node: Node) -> str:
    return "" if node.module_type is None else f" ({node.module_type.__name__})"
