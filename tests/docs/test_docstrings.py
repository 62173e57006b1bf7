"""Public names say what they take and raise, and show an example, which runs; names in the pages exist."""

from __future__ import annotations

import importlib.util
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fastlrp

ROOT = Path(__file__).parents[2]
NO_EXAMPLE = {
    "Layer", "Profile", "Rule", "TwoCoefficientRule", "WeightRule", "Maps", "LRPModule", "PropagationRule",
    "ForwardRecord", "TopScores", "Edges",
}  # fmt: skip
"""What nobody calls: bases, and what functions of the package make."""
ON_ITS_PAGE = {"GraphExplainer", "edge_relevance", "walk_relevance", "AutogradFunction"}
"""What needs a longer example than a docstring has room for; the guides have one."""


def site(name: str) -> ModuleType:
    """A file of the documentation site."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, lookup = site("reference"), site("lookup")


def public() -> dict[str, Any]:
    """Every public function and class, once, by the name that the reference has it under; errors left out."""
    found = {}
    for module in reference.MODULES:
        loaded = importlib.import_module(module)
        for name in reference.public(loaded):
            thing = getattr(loaded, name)
            if not (inspect.isfunction(thing) or inspect.isclass(thing)):
                continue
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if not is_error and reference.documented_elsewhere(module, thing) is None:
                found[f"{module}.{name}"] = thing
    return found


def methods() -> dict[str, Any]:
    """Those that users call."""
    hidden = ("state", "relevance_at_once", "of_sample", "asked", "values_of")
    return {
        f"fastlrp.{owner.__name__}.{name}": method
        for owner in (fastlrp.Explainer, fastlrp.ForwardRecord)
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_") and name not in hidden
    }


def section(thing: Any, *names: str) -> str:
    text = inspect.getdoc(thing) or ""
    found = (re.search(rf"^{name}:\n((?:(?:    .*)?\n)+)", text + "\n", re.M) for name in names)
    return "".join(match[1] for match in found if match)


def parameters(thing: Any) -> list[str]:
    try:
        # PyTorch's own constructors are PyTorch's to explain.
        is_foreign = inspect.isclass(thing) and getattr(thing.__init__, "__module__", "").startswith("torch.")
        own = [] if is_foreign else inspect.signature(thing).parameters.values()
    except ValueError:
        return []
    names = [p.name for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [name for name in names if name not in ("self", "args", "kwargs")]


def test_parameters_are_named():
    missing = []
    for name, thing in {**public(), **methods()}.items():
        given = section(thing, "Args", "Attributes")
        lost = [p for p in parameters(thing) if not re.search(rf"\b{p}\b", given)]
        if lost and name.rsplit(".", 1)[-1] not in ("ForwardRecord", "Text", "LRPModule", "Maps", "TopScores"):
            missing.append(f"{name}: {', '.join(lost)}")
    assert not missing, "the section Args does not name\n" + "\n".join(missing)


def test_errors_are_named():
    missing = []
    for name, thing in {**public(), **methods()}.items():
        own = vars(thing) if inspect.isclass(thing) else {"itself": thing}
        code = [own[key] for key in ("itself", "__init__", "__post_init__") if inspect.isfunction(own.get(key))]
        # The constructor of a dataclass has no text.
        body = "".join(inspect.getsource(f) for f in code if f.__code__.co_filename.endswith(".py"))
        raised = set(re.findall(r"raise (\w+)\(", body)) - {"NotImplementedError"}
        lost = [error for error in sorted(raised) if error not in section(thing, "Raises")]
        if lost:
            missing.append(f"{name}: {', '.join(lost)}")
    assert not missing, "the section Raises does not name\n" + "\n".join(missing)


@pytest.mark.slow
def test_examples_are_there_and_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastlrp.plan.assign, "_REGISTERED", dict(fastlrp.plan.assign._REGISTERED))
    faults = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        context: dict[str, Any] = {}
        exec(reference.CONTEXT, context)
        for name, thing in {**public(), **methods()}.items():
            text = inspect.getdoc(thing) or ""
            found = re.findall(r"^Example::\n\n((?:(?:    .*)?\n)+)", text + "\n", re.M)
            needs_gpu = name == "fastlrp.Explainer.replay"
            if not found and not needs_gpu and name.rsplit(".", 1)[-1] not in NO_EXAMPLE | ON_ITS_PAGE:
                faults.append(f"{name}: no example")
            for code in found:
                try:
                    exec(compile(textwrap.dedent(code), name, "exec"), dict(context))
                except Exception as error:
                    faults.append(f"{name}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)


def test_the_table_of_contents_has_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert not [page for page in pages if f"]({page})" not in index]


def test_names_of_code_in_the_pages_exist():
    missing = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        spans = re.findall(r"`([^`\n]+)`", prose)
        # A module of CUDA builds, and a rule that the page lets the reader write.
        for name in {n for span in spans for n in re.findall(r"(?<![\w./-])fastlrp(?:\.[A-Za-z_]\w*)+", span)} - {
            "fastlrp._C.cuda",
            "fastlrp.rules.absolute",
        }:
            try:
                lookup.found(name)
            except LookupError:
                missing.append(f"{page.name}: {name}")
    assert not missing, "\n".join(missing)
