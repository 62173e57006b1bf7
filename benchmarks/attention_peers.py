"""Who explains transformers beside fastlrp: LXT, autoLRP, plain gradients.

LXT changes classes for the whole process. It is undone after each forward pass, whose graph keeps the changed
functions, so that nobody else meets them.

``FASTLRP_LXT`` and ``FASTLRP_AUTOLRP`` may name folders that hold the packages ``lxt`` and ``autolrp``; without them
the installed ones take part.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import autolrp_rules
from benchmarks.attention_models import Workload
from benchmarks.providers import Mark, Provider, UnavailableError

COPIES = 8
"""Targets at once where a batch of copies of the input is made, each with a target of its own."""

Modified = Callable[[], Any]
"""A context in which the model's forward pass is another's."""


def gradients(work: Workload) -> list[Provider]:
    """Plain gradients: one backward pass for each target, all in one, or a batch of copies."""
    return _ways("gradient", work, nullcontext, comparable=False)


def lxt(work: Workload, composite: str) -> list[Provider]:
    """LXT in the same three ways.

    Raises:
        UnavailableError: if it is not there, or has no rules for this model.
    """
    patches = _lxt_patches(work, composite)
    return _ways("lxt", work, partial(_patched, patches), comparable=True)


def _ways(name: str, work: Workload, modified: Modified, comparable: bool) -> list[Provider]:
    def looped(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        leaf = work.leaf()
        with modified():
            scores = work.scores(leaf)
        mark()
        found = []
        for k in classes[0].tolist():
            (gradient,) = torch.autograd.grad(scores[0, k], leaf, retain_graph=True)
            found.append(work.relevance(leaf.detach(), gradient))
        return torch.stack(found, 1)

    def batched(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        leaf = work.leaf()
        with modified():
            scores = work.scores(leaf)
        mark()
        start = torch.nn.functional.one_hot(classes.t(), scores.shape[1]).to(scores.dtype)
        (gradient,) = torch.autograd.grad(scores, leaf, start, is_grads_batched=True)
        return work.relevance(leaf.detach().unsqueeze(0), gradient).transpose(0, 1)

    def copied(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        leaf = work.leaf().detach()
        count = min(COPIES, classes.shape[1])
        many = leaf.repeat(count, *[1] * (leaf.dim() - 1)).requires_grad_()
        with modified():
            scores = work.scores(many)
        mark()
        found = []
        for part in classes[0].split(count):
            chosen = scores[: len(part)].gather(1, part.unsqueeze(1)).sum()
            (gradient,) = torch.autograd.grad(chosen, many, retain_graph=True)
            found.append(work.relevance(many.detach(), gradient)[: len(part)])
        return torch.cat(found).unsqueeze(0)

    return [
        Provider(f"{name} looped", looped, 4, comparable, optional=True),
        Provider(f"{name} batched", batched, 8, comparable, optional=True),
        Provider(f"{name} copies", copied, 8, comparable, optional=True),
    ]


def autolrp(work: Workload, composite: str) -> list[Provider]:
    """autoLRP with the rules of ``composite`` (:mod:`benchmarks.autolrp_rules`), a backward pass for each target.

    Raises:
        UnavailableError: if it is not there.
    """
    theirs = library("autolrp", "FASTLRP_AUTOLRP")
    rules = autolrp_rules.configuration(theirs, composite)

    def looped(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        found = []
        leaf = theirs.tensor(work.leaf().detach())
        with autolrp_rules.written_out(theirs):
            scores = work.scores(leaf)
        mark()
        for k in classes[0].tolist():
            scores[0, k].lrp(config=rules)
            relevance = leaf.relevance * scores[0, k].detach()  # Its own is that of a score of 1.
            found.append((relevance.sum(-1) if work.is_text else relevance).detach().clone())
        return torch.stack(found, 1).as_subclass(Tensor)

    return [Provider("autolrp looped", looped, 4, optional=True)]


def library(name: str, variable: str) -> Any:
    """The package, from the folder that the environment variable names if it is set.

    Raises:
        UnavailableError: if it cannot be imported.
    """
    folder = os.environ.get(variable)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{error}: install it, or name its folder in {variable}") from error


def _lxt_patches(work: Workload, composite: str) -> dict[Any, Callable[[Any], bool]]:
    """LXT's own map of classes to changes; for BERT one made of its functions, as its pages tell users to."""
    patches: Any = library("lxt.efficient.patches", "FASTLRP_LXT")
    wanted = {"attnlrp": "attnLRP", "cp_lrp": "cp_LRP"}.get(composite)
    if work.family in ("gpt2", "llama", "vit"):
        module = {"vit": "vit_torch"}.get(work.family, work.family)
        found = getattr(library(f"lxt.efficient.models.{module}", "FASTLRP_LXT"), wanted or "", None)
        if found is None:
            raise UnavailableError(f"it has no {composite} for this model")
        return dict(found)
    if work.family == "bert" and composite == "attnlrp":
        bert: Any = importlib.import_module("transformers.models.bert.modeling_bert")
        gelu: Any = importlib.import_module("transformers.activations").GELUActivation
        return {
            gelu: partial(patches.patch_method, patches.non_linear_forward, keep_original=True),
            torch.nn.LayerNorm: partial(patches.patch_method, patches.layer_norm_forward),
            torch.nn.Dropout: partial(patches.patch_method, patches.dropout_forward),
            bert: patches.patch_attention,
        }
    raise UnavailableError(f"it has no rules for this model under {composite}")


@contextmanager
def _patched(patches: dict[Any, Callable[[Any], bool]]) -> Iterator[None]:
    """LXT's changes, and everything as it was afterwards."""
    undo: list[Callable[[], None]] = []

    def keep(owner: Any, name: str) -> None:
        had, old = name in vars(owner), vars(owner).get(name)
        undo.append(lambda: setattr(owner, name, old) if had else hasattr(owner, name) and delattr(owner, name))

    for target in patches:
        names = ("forward", "original_forward") if isinstance(target, type) else ("eager_attention_forward",)
        for name in names:
            keep(target, name)
        table = getattr(target, "ALL_ATTENTION_FUNCTIONS", None)
        if table is not None:
            undo.append(partial(_restore, table, dict(table.items())))
    try:
        for target, patch in patches.items():
            if not patch(target):
                raise RuntimeError(f"LXT could not change {target}")
        yield
    finally:
        for back in reversed(undo):
            back()


def _restore(table: Any, old: dict[str, Any]) -> None:
    own = getattr(table, "_local_mapping", None)
    for key, value in old.items():
        table[key] = value
    if own is not None:  # What was read through to a table for all models must not stay here.
        shared = type(table)._global_mapping
        for key in [k for k, v in own.items() if shared.get(k) is v]:
            del own[key]
