"""Every Triton kernel is compiled ahead of time for the GPUs that it is meant for, and the results are looked at.

What a test run compiles is thinned out: :func:`tests.kernels.compiling.few`, and in a full run
:func:`tests.kernels.compiling.many`; a full run with ``FASTLRP_COMPILE=all`` compiles everything. Results are kept in
``build/triton`` under the hash that Triton makes of a kernel's source, the sources that it calls, types, constants,
options and its own version.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile kernels with")

ROOT = Path(__file__).parent.parent.parent
PLANTED = "tests.kernels.planted"
MANY = "all" if os.environ.get("FASTLRP_COMPILE") == "all" else "many"


def modules() -> list[str]:
    """Kernel files and folders that list what their launchers compile."""
    folder = ROOT / "kernels"
    files = {path.stem: path for path in folder.glob("*.py")} | {p.parent.name: p for p in folder.glob("*/__init__.py")}
    trees = {name: ast.parse(path.read_text()) for name, path in sorted(files.items())}
    return [
        name
        for name, tree in trees.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "compilations" for node in tree.body)
    ]


Found = dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]
"""Of each module what became of its kernels; and how many of its compilations were left out, and all its kernels."""


def compiled(modules: list[str], target: int, how: str) -> Found:
    """By the program of :mod:`tests.kernels.compiling`, in a process that does not interpret kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(ROOT / "build" / "triton")
    command = [sys.executable, "-m", "tests.kernels.compiling", ",".join(modules), str(target), how]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    found: Found = {}
    kernels = []
    for line in map(json.loads, run.stdout.splitlines()):
        if "left out" in line:
            found[line["module"]] = (kernels, line)
            kernels = []
        else:
            kernels.append(line)
    return found


def check(made: Found, target: int, how: str) -> None:
    for module, (found, rest) in made.items():
        left_out = rest["left out"]
        faults = [f"{module}: {c['name']} ({c['dtype']}): {fault}" for c in found for fault in c["faults"]]
        assert not faults, "\n".join(faults)
        assert not (how == "all" and left_out)
        if target == 90:
            assert {c["dtype"] for c in found} == {"float32", "float16", "bfloat16"}
        slow = max(found, key=lambda c: c["seconds"], default=None)
        print(f"{module}: {len(found)} compiled, {left_out} left out; the slowest: {slow}")


def launched() -> set[str]:
    """Names of all kernels in the sources."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "kernels").rglob("*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if f.decorator_list and f.name.endswith("_kernel")}


def test_compiles_and_what_is_wrong_is_found():
    """All in one process, which imports Triton once."""
    made = compiled([*modules(), PLANTED], 90, "few")
    planted, _ = made.pop(PLANTED)
    check(made, 90, "few")
    assert {"conv", "elementwise", "input_rules", "linear", "pool"} <= made.keys()
    assert {name for _, rest in made.values() for name in rest["kernels"]} == launched(), "every kernel is among them"
    is_found(planted)


@pytest.mark.full
@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("module", modules())
def test_compiles_in_every_tile(module, target):
    check(compiled([module], target, MANY), target, MANY)


EXPECTED = {
    "good": [],
    "no tensor cores": ["tensor cores are not used", "the product is not TF32"],
    "tensor cores nobody asked for": ["tensor cores are used"],
    "no type": ["neither type nor value of PRECISION"],
    "narrow stride": ["32-bit product with the stride x_r"],
    "narrow product": ["32-bit offset", "is a product"],
    "atomic": ["float atomic: "],
    "spilling": ["bytes of stack: registers spill"],
    "hungry": ["bytes of shared memory, a block may have"],
    "broken": ["does not compile: "],
}


def is_found(found: list[dict[str, Any]]) -> None:
    assert {c["name"] for c in found} == EXPECTED.keys()
    for c in found:
        faults = "; ".join(c["faults"])
        assert all(text in faults for text in EXPECTED[c["name"]]), (c["name"], faults)
        assert bool(faults) == bool(EXPECTED[c["name"]]), (c["name"], faults)
        if c["name"] == "narrow stride":  # Wide in the end, but too late: it is the product that overflows.
            assert len(c["faults"]) == 1


@pytest.mark.full
def test_what_is_wrong_is_found_for_another_target():
    ((found, _),) = compiled([PLANTED], 80, "all").values()
    is_found(found)
