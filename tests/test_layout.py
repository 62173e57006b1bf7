"""How the repository is laid out: imports point down, and an operation's files share one name everywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fastlrp.backends import dispatch

ROOT = Path(__file__).parent.parent
STEMS = sorted(set(dispatch.STEMS.values()))
# From the top down: a file imports from lines below its own alone, for the type checker too. A folder counts as one
# entry where its files stand together; inside it, and between entries of one line, there is no order.
ORDER = """
    __main__
    cli
    fastlrp tune.__main__
    io
    compat nn layerwise report convolutional parts contrasts graph_parts graph_explainer
    viz
    explainer
    run.replay verify.compare tune.command
    run.plans run.record
    run.group_answers run.forward_pass
    run.answers run.recording
    run.up.contributions run.up.grouped
    run.up.kept_shares
    run.up.direction
    run.up.middle
    run.up.way_up
    run.up.stages
    run.up.causal
    run.up.meeting run.up.frontier
    run.up.ascent
    run.up.boxed_ups run.up.tails run.sparse.upward
    run.up.boxes
    run.prepared run.diagnose run.names run.budget run.settled tune.tuner tune.sparse
    verify.walk verify.masked verify.relative verify.verification run.runner
    run.asked_rows run.sparse.wholes
    plan.plan
    plan.lower
    plan.assign
    capture.one_sample
    capture.export run.basis run.sparse.specialize
    run.descent run.sparse.wants
    run.sparse.needs
    capture.lift.unmapped
    capture.lift.graphs
    capture.state
    capture.lift.check capture.unpacked
    capture.lift.probe capture.lift.proof composites
    capture.lift.layers
    capture.lift.messages capture.failure
    capture.lift.moves
    capture.lift.lifter
    capture.translate.program capture.lift.standing
    capture.translate.emit
    capture.translate.complex_numbers
    capture.translate.metadata capture.translate.pairs
    capture.lift.batch_axis
    capture.translate.memory
    kinds.registry
    kinds
    run.given_ids run.hints
    run.graph_inputs
    run.accept run.inputs run.sink run.threads plan.table
    run.finite run.blocks run.shared_memory
    plan.transpose plan.products.even plan.bottlenecks
    rules
    plan.two_coefficients
    plan.coefficients
    plan.late plan.input_terms plan.products.looked_sums plan.products.point_sums plan.products.rest plan.products.both
    capture.translate.rewrite_functions plan.ups plan.passes.batch_parts plan.products.transposes
    plan.products.fused plan.products.sparse_form
    capture.translate.rewrite_attention capture.translate.rewrite_losses
    capture.translate.rewrite_masked_scatter
    plan.kept plan.layer plan.passes.fusion plan.passes.residuals plan.passes.joining plan.passes.check
    plan.builder plan.passes.placing plan.products.choice plan.products.layouts
    plan.passes.summing plan.passes.widening plan.products.few plan.products.depth plan.products.looked_narrow
    plan.products.channel_sizes
    plan.passes.moving capture.translate.rewrite capture.faults capture.translate.folding
    plan.forward_builder plan.paths.path plan.products.packed
    plan.neck plan.infinite plan.schedule plan.products.layer_calls plan.products.looked plan.products.point
    capture.canonizers capture.signs capture.advice capture.translate.calls plan.steps plan.paths.choose capture.wrapper
    capture.carrying capture.patterns.selection capture.patterns.attention_weights
    capture.patterns.composed_activations capture.patterns.segment_softmax capture.patterns.written_softmax
    capture.patterns.written_linear capture.patterns.written_norm
    capture.patterns.moved capture.patterns.quotients capture.patterns.scale_and_shift
    capture.patterns.norm_parameters
    capture.arguments plan.forms plan.narrow plan.products.channels_last
    plan.products.reduced plan.products.by_rows plan.step_names plan.absent capture.bind
    capture.trace.packed plan.rows plan.total capture.patterns.eager_attention capture.input_hints
    capture.trace.recurrent capture.trace.padded
    capture.graph capture.chosen capture.watch run.lent plan.paths.rates plan.compact
    capture.trace.traced capture.trace.methods capture.training
    targets.target_names
    targets.targets
    targets.class_names capture.trace.attributes capture.trace.bystanders capture.fingerprint capture.structure
    capture.trace.quick_shapes capture.trace.functions
    capture.aggregation capture.trace.fixed capture.translate.mask_sizes
    capture.wording capture.branches capture.trace.quiet capture.trace.sequence_shapes
    capture.trace.forks capture.trace.interrupts capture.trace.weight_cache
    tune.space tune.check
    capture.trace.settings capture.translate.module_paths capture.translate.overlap targets.classes
    targets.positions tune.attention capture.trace.shape_memory outputs
    plan.products.winograd
    targets.initial
    targets.spellings groups markup pickling progress run.reach precision transforms frequencies second_stage run.parted
    capture.translate.mapped targets.one_hot stabilizer eager plan.bounded
    plan.geometry tune.workloads files kinds.vocabulary hidden
    capture.held
    plan.lines plan.window capture.identity
    functional
    library info
    backends.dispatch
    backends
    kernels
    reference aten errors byte_sizes _C
    capture capture.lift capture.patterns capture.trace capture.translate plan plan.passes plan.paths plan.products
    targets run run.sparse run.up verify tune
    looking
""".strip().splitlines()
FILE_BY_FILE = (
    "plan.products", "targets",
    "capture", "capture.lift", "capture.patterns", "capture.trace", "capture.translate", "plan", "plan.passes",
    "plan.paths", "run", "run.sparse", "run.up", "verify", "tune",
)  # fmt: skip
"""Folders whose files stand in the order one by one."""
LEVEL = {entry: number for number, line in enumerate(ORDER) for entry in line.split()}
# What the files of operations share.
SUPPORT = {
    "__init__",
    "compilation",
    "configs",
    "launch",
    "looked_at",
    "device",
    "tensor_core",
    "dlpack",
    "require",
    "tensor",
    "tensors",
    "threads",
    "bits",
    "each_isa",
    "interpreter",
    "marks",
    "maps",
    "axes",
    "scan",
    "block_scan",
    "panels",
    "panel_products",
    "rounding",
}
PYBIND11 = ("bindings.cpp", "bindings/calls.h", "edge/interpreter.h")
PEERS = {"zennit", "captum", "torchvision", "sklearn", "transformers"}
# Who may import what an extra brings, and then in functions only.
OPTIONAL = {
    "matplotlib": ("viz",), "PIL": ("viz", "cli", "report"), "scipy": ("viz",), "tqdm": ("nn", "cli", "progress"),
    "click": ("cli",), "jinja2": ("report",), "safetensors": ("cli",),
}  # fmt: skip


def modules() -> dict[str, Path]:
    def name(path: Path) -> str:
        return ".".join(path.relative_to(ROOT).with_suffix("").parts)

    names = {name(path): path for path in (ROOT / "fastlrp").rglob("*.py")}
    names |= {f"fastlrp.{name(path)}": path for path in (ROOT / "kernels").rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


MODULES = modules()


@cache
def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Those of a file, in functions and for the type checker too."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imports(path: Path) -> set[str]:
    """What a file imports."""
    found = set()
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES or name == "fastlrp._C" else str(node.module) for name in inside}
    return found


def entry(module: str) -> str | None:
    """The entry of :data:`ORDER` that a module of the package belongs to."""
    parts = module.split(".")[1:] or ["fastlrp"]
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL), None)


def wrong_imports(module: str) -> Iterator[str]:
    here = entry(module)
    if here is None or (here in FILE_BY_FILE and module != f"fastlrp.{here}"):
        yield f"{module} has no place in ORDER"
        return
    for imported in imports(MODULES[module]):
        top = imported.split(".")[0]
        if top in PEERS and here not in ("compat", "cli"):
            yield f"{module} imports {imported}, which is not a dependency"
        if top in OPTIONAL and here not in OPTIONAL[top]:
            yield f"{module} imports {imported}, which is an extra of others"
        if top != "fastlrp":
            continue
        there = entry(imported)
        if imported == "fastlrp":
            yield f"{module} imports the package that imports it: name the module"
        elif there is None:
            yield f"{module} imports {imported}, which has no place in ORDER"
        elif here != there and LEVEL[here] >= LEVEL[there]:
            yield f"{module} imports {imported}, which stands higher or beside it"


def test_imports_point_down():
    """All offenders at once."""
    wrong = [message for module in sorted(MODULES) for message in wrong_imports(module)]
    assert not wrong, "\n".join(wrong)
    gone = [name for name in LEVEL if name not in ("fastlrp", "_C") and f"fastlrp.{name}" not in MODULES]
    assert not gone, f"ORDER names files that are gone: {', '.join(gone)}"


@pytest.mark.parametrize(("package", "later"), [("capture", ("plan", "run")), ("plan", ("run",))])
def test_data_flows_from_capture_to_plan_to_run(package, later):
    """What comes first knows nothing of what comes after it, whatever lines of :data:`ORDER` their files stand in."""
    files = {module: path for module, path in MODULES.items() if module.split(".")[1:2] == [package]}
    wrong = [
        f"{module} imports {imported}"
        for module, path in files.items()
        for imported in sorted(imports(path))
        if imported.startswith("fastlrp.") and imported.split(".")[1] in later
    ]
    assert files
    assert not wrong, "\n".join(wrong)


def test_no_private_name_is_imported():
    """What begins with an underscore is its own file's: a file of that name belongs to its folder."""
    wrong = []
    for module, path in MODULES.items():
        for node in import_statements(path):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastlrp"):
                names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
                wrong += [f"{module}: {name}" for name in names if name not in MODULES and name != "fastlrp._C"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_package_needs_torch_and_numpy_alone():
    """The tracer and SymPy, which take as long to import as all of fastlrp, come with the first capture."""
    extras = sorted({*OPTIONAL, *PEERS, "sympy", "torch._dynamo"})
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
    assert files - ({"redistribution", "weightless"} if package == "reference" else set()) == set(STEMS)


def test_kernel_files_are_stems():
    folders = ("kernels", "csrc/cpu", "csrc/cuda", "csrc/edge", "csrc/edge/cuda")
    names = {path.stem for folder in folders for path in (ROOT / folder).glob("*.*")} - SUPPORT
    # A file that got long has neighbours, <stem>_<part>. Shared sparsity stands beside the operations: it goes from
    # layer to layer.
    stems = (*STEMS, "sparse")
    assert {name for name in names if not any(name == stem or name.startswith(f"{stem}_") for stem in stems)} == set()
    tested = {path.stem.removeprefix("test_ops_") for path in (ROOT / "tests" / "ops").glob("test_ops_*.py")}
    assert tested >= set(STEMS)
    assert not {name for name in tested if not any(name == stem or name.startswith(f"{stem}_") for stem in STEMS)}


@pytest.mark.parametrize("op", dispatch.OPS)
@pytest.mark.parametrize("package", ["functional", "reference", "aten"])
def test_every_operation_is_in_the_file_of_its_stem(op, package):
    tree = ast.parse((ROOT / "fastlrp" / package / f"{dispatch.STEMS[op]}.py").read_text())
    assert op in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_three_files_know_pybind11_and_none_a_header_of_pytorch():
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.suffix in (".h", ".inc", ".cpp", ".cu", ".cuh"):
            text = path.read_text()
            bound = path in [ROOT / "csrc" / name for name in PYBIND11]
            names = ("torch", "ATen", "c10") if bound else ("pybind11", "torch", "ATen", "c10")
            assert not any(f"#include <{name}" in text for name in names), path


@pytest.mark.slow
def test_dispatch_and_library_load_no_backend():
    code = (
        "import sys, fastlrp.functional\n"
        "print([m for m in sys.modules if m.startswith(('fastlrp.reference', 'fastlrp.aten', 'zennit', 'captum'))])"
    )
    path = "import sys; sys.modules['fastlrp'] = type(sys)('fastlrp'); "
    path += f"sys.modules['fastlrp'].__path__ = [{str(ROOT / 'fastlrp')!r}]\n"
    run = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
