"""AttnLRP and CP-LRP of any model by autograd, in float64: its ATen calls, with what the rules hold fixed detached.

The model runs eagerly, each call is seen before autograd sees it, and relevance is gradient times input. Neither the
package nor ``torch.export`` is used, which would take thirty times as long. What is rewritten:

- norms: sigma detached; activations: ``act(u) / u`` detached; quotients: the divisor detached;
- products of two activations: each factor's gradient halved, unless one is a gate (made by a sigmoid or softmax, or
  broadcast over the other), which is detached; a router's weight for its expert is no gate;
- ``scaled_dot_product_attention``: written out, with quarters for queries and keys and half for values;
- ``detach``, which relevance passes, does nothing; the grid of ``grid_sample``, a condition, is detached;
- in CP-LRP, what a softmax made is detached where it multiplies something else, what an activation made where it
  does so entry by entry;
- everything else, softmax included, has its own gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_pre_dispatch, enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.transformers.oracle import act, attention, divided

aten = torch.ops.aten
VOCABULARY = 50
_ACTS = {
    "gelu", "silu", "relu", "tanh", "hardswish", "leaky_relu", "elu", "mish", "softplus", "hardtanh", "exp", "pow",
    "square", "sqrt", "sigmoid", "hardsigmoid", "log_sigmoid", "log", "sin", "cos",
}  # fmt: skip
_GATES = {"sigmoid", "hardsigmoid", "softmax", "rsqrt", "reciprocal"}
_KEEP_TAGS = {
    "view", "reshape", "unsqueeze", "expand", "to", "_to_copy", "clone", "index", "squeeze", "transpose", "permute",
    "dropout", "upsample_nearest2d", "contiguous", "slice", "select", "flatten", "unflatten", "type_as", "expand_as",
    "clamp", "nan_to_num", "chunk", "split", "split_with_sizes", "unbind", "mT", "t",
}  # fmt: skip


class Oracle(SchemaCheckMode):
    """One forward pass; afterwards :attr:`rows` has the looked-up rows of the model's own embedding.

    A mode in front of autograd sees calls before they are taken apart. PyTorch takes only modes of its own there, of
    which this is one by name alone.
    """

    def __init__(self, table: Tensor | None, mode: str) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)
        self.table, self.mode = table, mode
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.tags: dict[int, set[str]] = {}
        self.roots: dict[int, int] = {}  # Of what it is a function, entry by entry.
        self.held: list[Any] = []
        self.written: dict[int, Tensor] = {}

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = target._schema.name.split("::")[-1]
        self.held.append(args)  # An id stays that of one tensor.
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, self._current, (args, kwargs or {}))
        rule: Callable[..., Any] | None = getattr(self, f"_{name.strip('_')}", None)
        if name.rstrip("_") in _ACTS and isinstance(args[0], Tensor) and args[0].requires_grad:
            result = act(args[0], lambda u: target(u.clone(), *args[1:], **kwargs))
        elif name == "view":  # Of memory that the graph's own clones would have put in order.
            result = args[0].reshape(args[1])
        elif rule is not None:
            result = rule(target, *args, **kwargs)
        else:
            result = target(*args, **kwargs)
        self._tag(name, args, result)
        if name.endswith("_") and not name.startswith("_") and isinstance(result, Tensor) and result is not args[0]:
            self.written[id(args[0])] = result
        return result

    def _current(self, t: Tensor) -> Tensor:
        """What stands in a tensor now that an operation in place wrote into it."""
        while id(t) in self.written:
            t = self.written[id(t)]
        return t

    def _tag(self, name: str, args: Any, result: Any) -> None:
        tags: set[str] = set()
        if name.rstrip("_") in _GATES:
            tags.add("gate")
        if name in ("expand", "expand_as"):
            tags.add("expanded")
        tags |= self._of_constants(name.strip("_"), args, result)
        if name.rstrip("_") in _ACTS or name in ("softmax", "sigmoid", "hardsigmoid"):
            tags.add("made")
        if name == "softmax":
            tags.add("weight")
        if name == "topk":
            tags.add("routing")
        if name in ("add", "sub"):  # Weights that are mixed with fixed weights are weights still.
            tags |= {"weight"} & set().union(*(self._tags(t) for t in args[:2] if isinstance(t, Tensor)))
        if args and isinstance(args[0], Tensor) and (name in _KEEP_TAGS or name in ("softmax", "div", "div_")):
            tags |= self._tags(args[0]) - ({"gate", "expanded"} if name in ("softmax", "div", "div_") else set())
        if self._is_function_of_one(name, args, result) and name.strip("_") == "mul":
            factors = [t for t in args[:2] if isinstance(t, Tensor) and t.requires_grad]
            if len(factors) == 2 and any("gate" in self._tags(t) for t in factors):
                tags.add("made")  # ``x sigmoid(1.7 x)`` is an activation.
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, Tensor):
                self.held.append(t)
                self.tags[id(t)] = set(tags)

    def _is_function_of_one(self, name: str, args: Any, result: Any) -> bool:
        """Whether it is a function of one tensor, entry by entry, which is then noted."""
        operands = [t for t in args[:2] if isinstance(t, Tensor) and t.requires_grad]
        entrywise = name.strip("_") in _ACTS | {"mul", "add", "sub", "rsub", "neg", "div", "to", "to_copy", "type_as"}
        roots = {self.roots.get(id(t), id(t)) for t in operands}
        if not entrywise or len(roots) != 1 or result.shape != operands[0].shape:
            return False
        self.roots[id(result)] = roots.pop()
        return True

    def _of_constants(self, name: str, args: Any, result: Any) -> set[str]:
        """A gate times a constant or beside one is a gate still, as are a product of gates and a gate divided."""
        if name not in ("mul", "div", "add", "sub", "rsub", "neg"):
            return set()
        found = [t for t in args[:2] if isinstance(t, Tensor) and t.requires_grad]
        if len(found) == 1 and not (name == "div" and found[0] is not args[0]):
            kept = {"gate", "made"} if name in ("add", "sub", "rsub") else {"gate", "made", "expanded"}
            expanded = {"expanded"} if name in ("mul", "div", "neg") and found[0].shape != result.shape else set()
            return (self._tags(found[0]) & kept) | expanded
        if name == "mul" and len(found) == 2:
            return {"gate"} & self._tags(found[0]) & self._tags(found[1])
        return {"gate"} & self._tags(args[0]) if name == "div" and len(found) == 2 else set()

    def _tags(self, t: Tensor) -> set[str]:
        return self.tags.get(id(t), set())

    # Operations

    def _embedding(self, target: Any, weight: Tensor, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = target(weight, ids, *args, **kwargs)
        if self.table is None or weight.shape != self.table.shape or not torch.equal(weight, self.table):
            return found.detach()
        leaf = found.detach().clone().requires_grad_()
        self.rows.append((ids, leaf))
        return leaf

    def _layer_norm(self, target: Any, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
                    *rest: Any) -> Tensor:  # fmt: skip
        axes = tuple(range(-len(shape), 0))
        centred = x - x.mean(axes, keepdim=True)
        y = centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt().detach()
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def _rms_norm(self, target: Any, x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
        axes = tuple(range(-len(shape), 0))
        small = torch.finfo(x.dtype).eps if eps is None else eps
        y = x * (x.square().mean(axes, keepdim=True) + small).rsqrt().detach()
        return y if weight is None else y * weight

    def _group_norm(self, target: Any, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
                    *rest: Any) -> Tensor:  # fmt: skip
        flat = x.reshape(x.shape[0], groups, -1)
        centred = flat - flat.mean(-1, keepdim=True)
        y = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()).reshape(x.shape)
        sizes = (1, -1, *[1] * (x.dim() - 2))
        y = y if weight is None else y * weight.view(sizes)
        return y if bias is None else y + bias.view(sizes)

    def _scaled_dot_product_attention(
        self, target: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, dropout: float = 0.0,
        causal: bool = False, scale: float | None = None, enable_gqa: bool = False, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        scale, enable_gqa = kwargs.get("scale", scale), kwargs.get("enable_gqa", enable_gqa)
        causal, mask = kwargs.get("is_causal", causal), kwargs.get("attn_mask", mask)
        grad_q, grad_k, grad_v = (t.requires_grad for t in (q, k, v))
        weights = 2.0 if grad_v and (grad_q or grad_k) else 1.0
        each = weights * (2.0 if grad_q and grad_k else 1.0)
        if isinstance(mask, Tensor) and mask.requires_grad:  # A summand of the scores, which get half.
            mask = divided(mask, weights) if self.mode == "attnlrp" else mask.detach()
        return attention(q, k, v, mask, causal, scale, mode=self.mode, shares=(each, each, weights))

    def _product(self, target: Any, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if a.requires_grad and b.requires_grad:
            weight = ["weight" in self._tags(t) for t in (a, b)]
            if self.mode == "cp_lrp" and weight[0] != weight[1]:
                return target(a.detach() if weight[0] else a, b.detach() if weight[1] else b, *args, **kwargs)
            a, b = divided(a, 2), divided(b, 2)
        return target(a, b, *args, **kwargs)

    _matmul = _bmm = _product

    def _baddbmm(
        self, target: Any, first: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        return beta * first + alpha * self._product(aten.bmm, a, b)

    def _einsum(self, target: Any, equation: str, operands: Any, **kwargs: Any) -> Tensor:
        return self._product(lambda a, b: torch.einsum(equation, a, b), *operands)

    def _mul(self, target: Any, a: Any, b: Any) -> Tensor:
        if not all(isinstance(t, Tensor) and t.requires_grad for t in (a, b)):
            return a * b
        shape = torch.broadcast_shapes(a.shape, b.shape)
        routed = ["routing" in self._tags(t) for t in (a, b)]
        if self.mode == "cp_lrp" and routed[0] != routed[1]:
            return (a.detach() if routed[0] else a) * (b.detach() if routed[1] else b)
        if any(routed):
            return divided(a, 2) * divided(b, 2)
        smaller = [t.shape != shape for t in (a, b)]
        expanded = ["expanded" in self._tags(t) for t in (a, b)]
        gates = ["gate" in self._tags(t) for t in (a, b)]
        for held in (
            (gates, [s or e for s, e in zip(smaller, expanded, strict=True)], smaller) if not all(gates) else ()
        ):
            if held[0] != held[1]:
                return (a.detach() if held[0] else a) * (b.detach() if held[1] else b)
        made = ["made" in self._tags(t) for t in (a, b)]
        if self.mode == "cp_lrp" and made[0] != made[1]:
            return (a.detach() if made[0] else a) * (b.detach() if made[1] else b)
        return divided(a, 2) * divided(b, 2)

    _multiply = _mul

    def _glu(self, target: Any, x: Tensor, dim: int = -1) -> Tensor:
        signal, gate = x.chunk(2, dim)
        return signal * gate.sigmoid().detach()

    def _div(self, target: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
        if isinstance(b, Tensor) and b.requires_grad and "routing" not in self._tags(a):
            b = b.detach()
        return aten.div(a, b, **kwargs)

    _divide = _true_divide = _div

    def _add(self, target: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
        return aten.add(a, b, **kwargs)

    def _detach(self, target: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    def _grid_sampler(self, target: Any, image: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = target(image, grid.detach(), *args, **kwargs)
        return result

    def _grouped_mm(self, target: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        experts = torch.bucketize(torch.arange(len(x)), ends.long(), right=True)
        return torch.einsum("sd,sdo->so", x, weight[experts])


def _with_plain_gelu(model: nn.Module) -> nn.Module:
    """Activations that are written out, as what they are."""
    for module in model.modules():
        if type(module).__name__ in ("NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh"):
            module.forward = lambda x: F.gelu(x, approximate="tanh")
    return model


def _forward_alone(function: Any, *args: Any) -> Any:
    """In the place of ``torch.autograd.Function.apply``: what it computes has the derivative of its own calls."""
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args)  # The context is filled apart.
    return function.forward(SimpleNamespace(save_for_backward=lambda *kept: None), *args)


def word_embedding(model: nn.Module) -> nn.Embedding | None:
    """The table that input ids are looked up in."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == VOCABULARY]
    return tables[0] if tables else None


def relevance(model: nn.Module, x: Any, output: Any, targets: Any, mode: str = "attnlrp") -> tuple[Tensor, list[Any]]:
    """The model's output, and what each float input and each ids' embedding get, ``(B, K, …)``, in order."""
    args, kwargs = ((), dict(x)) if isinstance(x, dict) else ((x,), {})
    leaves = [t for t in (*args, *kwargs.values()) if t.is_floating_point()]
    code = getattr(model.forward, "__code__", None)
    if code is not None and "use_cache" in code.co_varnames:
        kwargs["use_cache"] = False
    model = _with_plain_gelu(copy.deepcopy(model)).requires_grad_(False)
    embeddings = word_embedding(model)
    table = None if embeddings is None else embeddings.weight
    points = {id(t): t.detach().clone().requires_grad_() for t in leaves}
    given = torch.utils._pytree.tree_map_only(Tensor, lambda t: points.get(id(t), t), (args, kwargs))
    alone = patch.object(torch.autograd.Function, "apply", classmethod(_forward_alone))
    # Gated delta rules solve for what they otherwise sum up row by row, which is what an export sees.
    exporting = patch.object(torch.compiler, "is_exporting", lambda: True)
    with (
        alone,
        exporting,
        torch.enable_grad(),
        enable_pre_dispatch(),
        enable_python_dispatcher(),
        Oracle(table, mode) as oracle,
    ):
        out = model(*given[0], **given[1])
        if callable(output):
            y = output(out)
        else:
            y = out if isinstance(out, Tensor) else out[output or "logits"]
    rows = [leaf for _, leaf in oracle.rows]
    wanted = [*points.values(), *rows]
    found: list[list[Tensor]] = [[] for _ in wanted]
    for k in targets:
        gradients = torch.autograd.grad(y[:, k].sum(), wanted, retain_graph=True, allow_unused=True)
        for part, gradient, leaf in zip(found, gradients, wanted, strict=True):
            product = (torch.zeros_like(leaf) if gradient is None else gradient * leaf).detach()
            part.append(product.sum(-1) if any(leaf is r for r in rows) else product)
    assert math.isfinite(float(y.detach().sum()))
    return y.detach(), [torch.stack(part, 1) for part in found]
