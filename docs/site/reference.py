"""Makes a page of the reference for each public module: what it is for, then every public name with its docstring."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "fastlrp", "fastlrp.composites", "fastlrp.rules", "fastlrp.groups", "fastlrp.viz", "fastlrp.report", "fastlrp.io",
    "fastlrp.nn", "fastlrp.frequencies", "fastlrp.compat.zennit", "fastlrp.compat.captum", "fastlrp.functional",
    "fastlrp.info",
)  # fmt: skip
CONTEXT = """
import numpy as np
import torch
from torch import nn

import fastlrp
from fastlrp import composites, groups, rules, viz

model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
).eval()
x = torch.rand(2, 3, 16, 16)
explainer = fastlrp.Explainer(model, "epsilon_plus")
record = explainer.forward(x)
relevance = record.relevance([3, 1])  # (2, 2, 3, 16, 16)

words = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)).eval()  # ids (B, S) to scores (B, S, V)
ids = torch.tensor([[7, 3, 9, 4], [5, 2, 8, 1]])
reader = fastlrp.Explainer(words, "attnlrp")
"""
"""What the examples in docstrings stand on."""
RESULTS = {
    "fastlrp.plan.plan.Plan": "table", "fastlrp.verify.verification.Verification": "",
    "fastlrp.verify.verification.LayerCheck": "", "fastlrp.verify.compare.verify": "",
    "fastlrp.targets.targets.Targets": "scores", "fastlrp.run.up.contributions.Contributions": "",
    "fastlrp.run.up.direction.Choice": "", "fastlrp.run.replay.Replay": "",
    "fastlrp.targets.spellings.Each": "", "fastlrp.targets.spellings.NextTokens": "",
}  # fmt: skip
"""What methods of explainers and records return, and what users call of it; everything unless it is named."""
INNER = {
    "fastlrp.rules": "textbook, lower, coefficients, lower_batch_norm, at_pools",
    "fastlrp.ForwardRecord": "state, budget, of_sample, values_of, relevance_at_once, fixed_batch, labels, instead",
}
"""By the beginning of a name: what plans, the reference and other parts of the package use, and users do not."""
INHERITS = {"fastlrp.ForwardRecord": "StaysHere"}
"""What inherits members that users call, with the base from which on they are inner ones."""
RESULTS_HEAD = """What calls return
=================

Nobody makes these by hand: explainers, records and functions return them.

"""


def public(module: ModuleType) -> list[str]:
    """The names of a module's reference: its ``__all__``, or what is defined in it and does not begin with ``_``."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        names = [n for n in names if not n.startswith("_")]
    return [n for n in names if not inspect.ismodule(getattr(module, n))]


def documented_elsewhere(module: str, thing: Any) -> str | None:
    """The name under which an earlier page has the same function or class."""
    for earlier in MODULES[: MODULES.index(module)]:
        given = importlib.import_module(earlier)
        for name in public(given):
            if getattr(given, name) is thing and (inspect.isroutine(thing) or inspect.isclass(thing)):
                return f"{earlier}.{name}"
    return None


def make(folder: Path) -> list[str]:
    """Write the pages; their names, as the table of contents needs them."""
    folder.mkdir(parents=True)
    for name in MODULES:
        (folder / f"{name}.rst").write_text(page(name))
    entries = "\n".join(entry(name, thing_of(name), members) for name, members in RESULTS.items())
    (folder / "results.rst").write_text(RESULTS_HEAD + entries)
    return [f"reference/{name}.rst" for name in (MODULES[0], "results", *MODULES[1:])]


def thing_of(name: str) -> Any:
    module, own = name.rsplit(".", 1)
    return getattr(importlib.import_module(module), own)


def page(name: str) -> str:
    """A page with the module's docstring and its names."""
    module = importlib.import_module(name)
    parts = [f"{name}\n{'=' * len(name)}\n", f".. automodule:: {name}\n   :no-members:\n"]
    if name == MODULES[0]:
        code = "".join(f"   {line}\n" for line in CONTEXT.strip().splitlines())
        parts.append(f"The examples of the reference stand on this::\n\n{code}")
    for own in public(module):
        thing = getattr(module, own)
        elsewhere = documented_elsewhere(name, thing)
        if elsewhere is not None:
            parts.append(f"``{name}.{own}`` is :obj:`{elsewhere}`.\n")
        else:
            parts.append(entry(f"{name}.{own}", thing))
    return "\n".join(parts)


def entry(name: str, thing: Any, members: str = "") -> str:
    """The directive that documents one name, with all of its public members or those that are given."""
    if inspect.isclass(thing):
        hidden = [names for beginning, names in INNER.items() if name.startswith(beginning)]
        lines = "".join(f"   :exclude-members: {names}\n" for names in hidden)
        if name in INHERITS:
            lines += f"   :inherited-members: {INHERITS[name]}\n"
        return f".. autoclass:: {name}\n   :members: {members}\n{lines}"
    if inspect.isroutine(thing):
        return f".. autofunction:: {name}\n"
    return f".. autodata:: {home_of_data(name)}\n   :no-value:\n"


def home_of_data(name: str) -> str:
    """The module that assigns a constant, whose text stands below it there and nowhere else."""
    module, own = name.rsplit(".", 1)
    assigned = re.compile(rf"^{own}\b.*=", re.M)
    for other, found in sorted(sys.modules.items()):
        if other.startswith(module) and getattr(found, "__file__", None) and assigned.search(inspect.getsource(found)):
            return f"{other}.{own}"
    return name
