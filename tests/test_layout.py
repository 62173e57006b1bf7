"""How the repository is laid out: imports point down, and an operation's files share one name everywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fastlrp import dispatch

ROOT = Path(__file__).parent.parent
STEMS = sorted(set(dispatch.STEMS.values()))
BOTTOM = ("fastlrp.reference", "fastlrp.aten", "fastlrp._C")
# From the top down; a module may import those further down. What is not named here stands anywhere above `functional`.
ORDER = (
    ("fastlrp.__main__",),
    ("fastlrp.cli",),
    ("fastlrp.io", "fastlrp.report", "fastlrp.compat"),
    ("fastlrp.nn", "fastlrp.layerwise"),
    ("fastlrp.explainer",),
    ("fastlrp.verify",),
    ("fastlrp.plan",),
    ("fastlrp.canonizers", "fastlrp.composites", "fastlrp.capture"),
    ("fastlrp.probe",),
    ("fastlrp.batch_axis",),
    ("fastlrp.graph", "fastlrp.rules"),
    ("fastlrp.stabilizer", "fastlrp.errors"),
    ("fastlrp.functional",),
    ("fastlrp.library", "fastlrp.info"),
    ("fastlrp.dispatch",),
    ("fastlrp.kernels",),  # Where a kernel does not fit they compose, as aten does.
    BOTTOM,
)
# What the files of operations share.
SUPPORT = {
    "__init__",
    "compilation",
    "configs",
    "launch",
    "device",
    "tensor_core",
    "tensors",
    "maps",
    "axes",
    "scan",
    "block_scan",
}
FUNCTIONAL = ORDER.index(("fastlrp.functional",))
PEERS = {"zennit", "captum", "torchvision", "sklearn", "transformers"}
# Who may import what an extra brings, and then in functions only.
OPTIONAL = {
    "matplotlib": ("viz",), "PIL": ("viz", "cli", "report"), "scipy": ("viz",), "tqdm": ("nn", "cli"),
    "click": ("cli",), "jinja2": ("report",), "safetensors": ("cli",),
}  # fmt: skip


def modules() -> dict[str, Path]:
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "fastlrp").rglob("*.py")}
    names |= {f"fastlrp.kernels.{p.stem}": p for p in (ROOT / "kernels").glob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


MODULES = modules()


def imports(path: Path) -> set[str]:
    """What a file imports, in functions too, but not for the type checker alone."""
    found, todo = set(), list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES or name == "fastlrp._C" else str(node.module) for name in inside}
    return found


def level(module: str) -> int | None:
    for number, prefixes in enumerate(ORDER):
        if any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes):
            return number
    return None


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"fastlrp"}))
def test_imports_point_down(module):
    number = level(module)
    for imported in imports(MODULES[module]):
        top = imported.split(".")[0]
        allowed = module.split(".")[1:2] == ["compat"] or module.startswith("fastlrp.cli")
        assert top not in PEERS or allowed, f"{module} imports {imported}, which is not a dependency"
        if top in OPTIONAL:
            assert module.split(".")[1] in OPTIONAL[top], f"{module} imports {imported}, which is an extra of others"
        if top != "fastlrp":
            continue
        assert imported != "fastlrp", f"{module} imports the package that imports it: name the module"
        below = level(imported)
        same = module.split(".")[:2] == imported.split(".")[:2]
        if number is not None and not same:
            least = FUNCTIONAL if below is None else below
            assert number < least, f"{module} imports {imported}, which stands higher or beside it"


def test_the_package_needs_torch_and_numpy_alone():
    extras = sorted({*OPTIONAL, *PEERS})
    code = (
        "import sys, fastlrp, fastlrp.nn, fastlrp.io, fastlrp.viz, fastlrp.report, fastlrp.compat.zennit, "
        "fastlrp.compat.captum, fastlrp.__main__\n"
        f"print([m for m in {extras} if m in sys.modules and m not in before])"
    )
    code = "import sys, torch, numpy; before = set(sys.modules)\n" + code
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_no_module_imports_itself_in_a_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done or module not in MODULES:
            return
        for imported in imports(MODULES[module]):
            visit(imported, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", ["functional", "reference", "aten"])
def test_stems_are_the_same(package):
    files = {path.stem for path in (ROOT / "fastlrp" / package).glob("*.py") if not path.stem.startswith("_")}
    # The definition also states the rules themselves.
    assert files - ({"rules", "structure"} if package == "reference" else set()) == set(STEMS)


def test_kernel_files_are_stems():
    folders = ("kernels", "csrc/cpu", "csrc/cuda", "csrc/edge", "csrc/edge/cuda")
    names = {path.stem for folder in folders for path in (ROOT / folder).glob("*.*")} - SUPPORT
    # A file that got long has neighbours, <stem>_<part>. Shared sparsity stands beside the operations: it goes from
    # layer to layer.
    stems = (*STEMS, "sparse")
    assert {name for name in names if not any(name == stem or name.startswith(f"{stem}_") for stem in stems)} == set()
    assert {path.stem.removeprefix("test_ops_") for path in (ROOT / "tests" / "ops").glob("test_ops_*.py")} == set(
        STEMS
    )


@pytest.mark.parametrize("op", dispatch.OPS)
@pytest.mark.parametrize("package", ["functional", "reference", "aten"])
def test_every_operation_is_in_the_file_of_its_stem(op, package):
    tree = ast.parse((ROOT / "fastlrp" / package / f"{dispatch.STEMS[op]}.py").read_text())
    assert op in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_only_the_bindings_know_pybind11_and_only_the_edge_knows_pytorch():
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.name != "bindings.cpp" and path.suffix in (".h", ".inc", ".cpp", ".cu", ".cuh"):
            text = path.read_text()
            names = ("pybind11", "torch") if "edge" in path.parts else ("pybind11", "torch", "ATen", "c10")
            assert not any(f"#include <{name}" in text for name in names), path


def test_dispatch_and_library_load_no_backend():
    code = (
        "import sys, fastlrp.functional\n"
        "print([m for m in sys.modules if m.startswith(('fastlrp.reference', 'fastlrp.aten', 'zennit', 'captum'))])"
    )
    path = "import sys; sys.modules['fastlrp'] = type(sys)('fastlrp'); "
    path += f"sys.modules['fastlrp'].__path__ = [{str(ROOT / 'fastlrp')!r}]\n"
    run = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
