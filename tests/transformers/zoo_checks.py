"""What must hold for every family of :mod:`tests.transformers.zoo`, as functions that raise AssertionError."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp import Explainer
from tests.models.oracle import relative_error
from tests.transformers import aten_oracle, zoo, zoo_family
from tests.transformers.zoo_family import Family

Found = dict[str, Tensor]


def named(found: Any) -> Found:
    """Relevance by input."""
    return {k: v for k, v in found.items() if v is not None} if isinstance(found, dict) else {"x": found}


def given(x: Any) -> dict[str, Tensor]:
    return dict(x) if isinstance(x, dict) else {"x": x}


def equal(a: Found, b: Found, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        error = relative_error(a[name], b[name])
        assert error <= tolerance, f"{name}: {error:.1e}"


def is_verified(explainer: Explainer, x: Any, family: Family) -> None:
    """The kernels agree with the textbook, layer by layer, and everything is finite."""
    for name, relevance in named(explainer(x, list(family.targets))).items():
        assert bool(relevance.isfinite().all()), name
        assert float(relevance.abs().sum()) > 0, name
    report = explainer.verify(x, [family.targets[0]])
    assert report.ok, str(report)


def equals_oracle(explainer: Explainer, x: Any, family: Family, mode: str) -> None:
    """AttnLRP or CP-LRP by autograd."""
    targets = list(family.targets)
    found = named(explainer(x, targets))
    _, expected = aten_oracle.relevance(explainer.model, x, family.output, targets, mode)
    tensors = given(x)
    order = [n for n in tensors if tensors[n].is_floating_point()]
    order += [n for n in found if n not in order]
    assert len(order) == len(expected)
    equal(found, dict(zip(order, expected, strict=True)), family.tolerance)


def gradient_is_autograd(explainer: Explainer, x: Any, family: Family) -> None:
    """The gradient of the model itself; of ids, times the rows that they choose."""
    model, targets = explainer.model, list(family.targets)
    with explainer.forward(x) as record:
        found = named(record.relevance(targets, initial="one"))
    if getattr(getattr(model, "config", None), "_experts_implementation", None) == "grouped_mm":
        model = copy.deepcopy(model)
        model.set_experts_implementation("eager")  # PyTorch's grouped product takes no float64.
    tensors, rows = given(x), []

    def look_up(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        rows.append(result.detach().requires_grad_())
        return rows[-1]

    ids = [n for n in found if not tensors[n].is_floating_point()]
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == aten_oracle.VOCABULARY]
    handles = [table.register_forward_hook(look_up) for table in tables if ids]
    points = {n: t.detach().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}
    out = model(**points) if isinstance(x, dict) else model(points["x"])
    for handle in handles:
        handle.remove()
    if callable(family.output):
        y = family.output(out)
    else:
        y = out if isinstance(out, Tensor) else out[family.output or "logits"]
    wanted = [*(points[n] for n in found if n not in ids), *rows]
    assert len(wanted) == len(found)
    parts: list[list[Tensor]] = [[] for _ in wanted]
    for k in targets:
        for part, leaf, g in zip(
            parts, wanted, torch.autograd.grad(y[:, k].sum(), wanted, retain_graph=True, allow_unused=True), strict=True
        ):
            g = torch.zeros_like(leaf) if g is None else g
            part.append((g * leaf).sum(-1).detach() if any(leaf is r for r in rows) else g)
    order = [*(n for n in found if n not in ids), *ids]
    equal(found, {n: torch.stack(p, 1) for n, p in zip(order, parts, strict=True)}, family.tolerance)


def targets_and_samples_are_apart(explainer: Explainer, x: Any, family: Family) -> None:
    """Targets at once as one by one; samples in another order; coefficients kept or not."""
    targets = list(family.targets)
    found = named(explainer(x, targets))
    tight = min(family.tolerance, 1e-6)
    for i, target in enumerate(targets):
        equal(named(explainer(x, [target])), {n: r[:, [i]] for n, r in found.items()}, tight)
    flipped = {n: t.flip(0) for n, t in x.items()} if isinstance(x, dict) else x.flip(0)
    equal(named(explainer(flipped, targets)), {n: r.flip(0) for n, r in found.items()}, tight)
    with explainer.forward(x, lrp_aware=False) as record:
        equal(named(record.relevance(targets)), found, tight)


def padding_changes_nothing(model: nn.Module, family: Family, left: bool, output: Any) -> None:
    """The shorter text has the same relevance alone, and what pads it has none."""
    ids = zoo_family.random_ids(2, 7)
    mask = torch.ones_like(ids)
    kept = slice(2, None) if left else slice(None, 5)
    padded = slice(None, 2) if left else slice(5, None)
    ids[0, padded], mask[0, padded] = 0, 0
    explainer = Explainer(model, "attnlrp", output=output)
    found = explainer({"input_ids": ids, "attention_mask": mask}, [1, 2])["input_ids"]
    alone = explainer({"input_ids": ids[:1, kept], "attention_mask": mask[:1, kept]}, [1, 2])["input_ids"]
    assert bool((found[0, :, padded] == 0).all()), "padded positions get relevance"
    error = relative_error(found[:1, :, kept], alone)
    assert error <= family.tolerance, f"{error:.1e}"


def rows_give_what_ids_give(model: nn.Module, x: dict[str, Tensor], family: Family) -> None:
    """``inputs_embeds`` in the place of ``input_ids``."""
    explainer = Explainer(model, "attnlrp", output=family.output)
    of_ids = explainer(x, list(family.targets))["input_ids"]
    rows = model.get_input_embeddings()(x["input_ids"]).detach()
    others = {n: t for n, t in x.items() if n != "input_ids"}
    of_rows = explainer({"inputs_embeds": rows, **others}, list(family.targets))["inputs_embeds"]
    error = relative_error(of_rows.sum(-1), of_ids)
    assert error <= family.tolerance, f"{error:.1e}"


def implementations_agree(name: str, first: str = "sdpa", second: str = "eager") -> None:
    """One attention implementation and another; padded on the right, since eager float64 gives NaN on the left."""
    model, x = zoo.built(name)
    x = zoo_family.text() if isinstance(x, dict) and set(x) == {"input_ids", "attention_mask"} else x
    family, found = zoo.ALL[name], []
    for implementation in (first, second):
        if implementation != model.config._attn_implementation:  # Another model, which a capture is not shared with.
            model = copy.deepcopy(model)
            model.set_attn_implementation(implementation)
        found.append(named(Explainer(model, "attnlrp", output=family.output)(x, list(family.targets))))
    equal(*found, max(family.tolerance, 1e-6))  # Eager attention of some computes its softmax in float32.
