"""Names of code in docstrings and signatures: each must exist; those that the reference documents become links.

Sphinx alone knows what is documented, by the name that it is documented under. Here a name is looked up in the code:
what it leads to is linked wherever it is documented, is left as plain text if it exists and is not, and is a warning
(which ``make docs`` counts as an error) if there is no such thing. Nothing outside the package is asked.
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.nodes import make_refnode

from lookup import PACKAGE, found

OUTSIDE = {
    "torch", "np", "numpy", "nn", "matplotlib", "PIL", "Any", "Tensor", "Figure", "Image", "Colormap", "collections",
    "typing", "Self", "Cmap", "Callable", "Sequence", "Mapping", "Iterator", "pathlib", "types", "Module", "Path",
}  # fmt: skip
"""Packages and types of others, which are spelled in many ways in signatures and are not ours to check."""
_ARGUMENT = re.compile(r"(?<=[.;]) (?=\*{0,2}(\w+)(?:, \w+)*: )")


def candidates(node: pending_xref) -> list[str]:
    """Full names that a reference may mean, from the place where it stands."""
    target, module, owner = node["reftarget"], node.get("py:module"), node.get("py:class")
    target = target.removeprefix(".")
    return [
        target,
        *([f"{owner}.{target}", f"{module}.{owner}.{target}"] if owner else []),
        *([f"{module}.{target}"] if module else []),
        f"{PACKAGE}.{target}",
    ]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Node | None:
    """A link, plain text, or None, which makes Sphinx warn."""
    if node.get("refdomain") != "py":
        return None
    if getattr(app, "documented_things", None) is None:
        app.documented_things = documented(env)  # type: ignore[attr-defined]
    for name in candidates(node):
        try:
            thing = found(name)
        except LookupError:
            continue
        entry = app.documented_things.get(_key(thing, name))  # type: ignore[attr-defined]
        if entry is not None:
            return make_refnode(app.builder, node["refdoc"], entry[0], entry[1], text)
        return text
    return text if exists_elsewhere(node["reftarget"], node.get("py:module")) else None


def exists_elsewhere(name: str, module: str | None) -> bool:
    """Whether a name that has no page is a built-in, a type of another package, or somewhere in this one."""
    first = name.split(".")[0]
    if hasattr(builtins, first) or first in OUTSIDE:
        return True
    within = [m for n, m in sys.modules.items() if n == PACKAGE or n.startswith(f"{module or PACKAGE}.")]
    if "." in name:
        return False
    return any(hasattr(m, name) for m in within) or (name[0].isupper() and _is_type_of_ours(name))


def _is_type_of_ours(name: str) -> bool:
    return any(hasattr(m, name) for n, m in sys.modules.items() if n.startswith(f"{PACKAGE}."))


def documented(env: BuildEnvironment) -> dict[Any, tuple[str, str]]:
    """Everything in the reference -> its page and anchor."""
    things: dict[Any, tuple[str, str]] = {}
    for name, entry in env.domains["py"].objects.items():  # type: ignore[attr-defined]
        try:
            things.setdefault(_key(found(name), name), (entry.docname, entry.node_id))
        except LookupError:
            continue
    return things


def _key(thing: Any, name: str) -> Any:
    """Functions, classes and modules by themselves; data by name, since equal numbers are no equal things."""
    if isinstance(thing, property):
        return id(thing)
    return id(thing) if inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing) else name


def sections(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Google's sections as fields. ``path: the file. key: its name.`` in one line becomes two entries.

    Errors are a list as arguments are: several may stand before one colon. The docstrings of attributes are text, in
    which what stands before a colon is no type.
    """
    section, made = "", []
    for line in lines:
        header = re.match(r"^(\s*)(Args|Attributes|Raises):\s*$", line)
        if header:
            section = header[1] + "    "
            made.append(line.replace("Raises", "Errors").replace("Args", "Parameters"))
            continue
        if line.strip() and not line.startswith(section):
            section = ""
        if section and line.strip():
            own = line[: len(line) - len(line.lstrip())]
            made += [own + part if i == 0 else section + part for i, part in enumerate(_split(line.strip(), thing))]
        else:
            made.append(line)
    styles = [(title, "params_style") for title in ("Parameters", "Attributes", "Errors")]
    config = Config(napoleon_use_rtype=False, napoleon_custom_sections=styles)
    kind = "method" if what in ("attribute", "data", "property") else what
    lines[:] = GoogleDocstring(made, config, app, kind, name, thing, options).lines()


def _split(text: str, thing: Any) -> list[str]:
    try:
        names = set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        names = set()
    names |= set(getattr(thing, "__annotations__", {}))
    names |= set(re.findall(r"(\w+Error): ", text))
    parts, start = [], 0
    for match in _ARGUMENT.finditer(text):
        if match[1] in names:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", sections)
    return {"parallel_read_safe": True}
