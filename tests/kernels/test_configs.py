"""Tables of configurations: what is looked up, what a user's table overrides, and what a broken one says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlrp.kernels import configs
from fastlrp.kernels.configs import Config, TableError

pytestmark = pytest.mark.usefixtures("own_tables")

ROOT = Path(__file__).parent.parent.parent
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NAME = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that PyTorch tells about, with Triton 3.7.1."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: NAME)
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", "3.7.1")


def row(**changes):
    return {
        "kernel": "linear", "shape_class": "many", "kind": "half", "block_m": 64, "block_n": 32, "block_k": 16,
        "num_warps": 2, "num_stages": 5, "route": "fused", **changes,
    }  # fmt: skip


def table(*rows, **changes):
    measured = {"device": NAME, "triton": "3.7.1", "date": "2026-01-31"}
    return {"format": 1, "device": "sm90", "measured": measured, "rows": list(rows), **changes}


def put(content):
    path = configs.own_path(NAME, "3.7.1")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# The tables that fastlrp brings


@pytest.mark.parametrize("key", configs.DEVICE_KEYS)
def test_tables_say_that_nothing_was_measured(key):
    found = configs.table(key)
    assert (found.device, found.measured) == (key, None)
    assert found.rows
    # Every row says why it is what it is, because nothing else vouches for it.
    raw = json.loads((ROOT / "kernels" / "tables" / f"{key}.json").read_text())["rows"]
    assert all(isinstance(entry["why"], str) and entry["why"] for entry in raw)


def test_tables_have_the_same_rows():
    assert len({frozenset(k for k in configs.table(key).rows) for key in ("sm80", "sm90", "other")}) == 1
    kernels = {kernel for kernel, *_ in configs.table("sm90").rows}
    assert {kernel for kernel, *_ in configs.table("interpreter").rows} == kernels


def asked() -> set[str]:
    """Kernels that launchers ask for by name, read from their sources."""
    found: set[str] = set()
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "configuration":
                found.add(ast.unparse(node.args[0]))
    return found


def test_every_kernel_that_is_asked_for_has_rows():
    rows = configs.table("sm90").rows
    assert len(asked()) >= 4
    for kernel in {kernel for kernel, *_ in rows}:
        for kind in configs.KINDS:
            # A row for any shape, so that no class is without one.
            assert any((kernel, shape, kind) in rows for shape in ("*", "wide", "many")), (kernel, kind)
    for name in (n.strip("'\"") for n in asked() if n.startswith(("'", '"'))):
        assert any(kernel == name for kernel, *_ in rows), name


@pytest.mark.slow
def test_lookup_on_the_cpu_is_the_interpreters_and_touches_no_gpu():
    code = (
        "import torch\n"
        "def refuse(*a, **k): raise AssertionError('CUDA was touched')\n"
        "torch.cuda._lazy_init = torch.cuda.get_device_capability = torch.cuda.get_device_name = refuse\n"
        "from fastlrp.kernels.configs import configuration\n"
        "for dtype in (torch.float32, torch.float16, torch.bfloat16):\n"
        "    found = configuration('linear', 'many', torch.device('cpu'), dtype)\n"
        "    assert max(found.block_m, found.block_n, found.block_k) <= 32, found\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_device_keys(monkeypatch):
    capability = {0: (8, 0), 1: (9, 0), 2: (8, 9), 3: (10, 0), 4: (7, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.__getitem__)
    found = [configs.device_key("cuda", index) for index in capability]
    assert found == ["sm80", "sm90", "other", "other", "other"]
    assert configs.device_key("cpu", None) == "interpreter"
    assert configs.device_key("mps", None) == "other"


@pytest.fixture
def switches():
    """PyTorch's switches for TF32, put back afterwards."""
    backends = torch.backends
    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32

    def switch(convolutions, products):
        backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = convolutions, products

    yield switch
    switch(*before)


@pytest.mark.usefixtures("gpu")
def test_kinds_follow_pytorchs_switches(switches):
    kinds = []

    def listen(kernel, shape_class, kind):
        kinds.append(kind)
        return Config(16, 16, 16)

    def ask(kernel, dtype, precision=None):
        configs.configuration(kernel, "many", GPU, dtype, precision)
        return kinds[-1]

    with configs.choosing(listen):
        for allowed, kind, other in ((True, "tf32", "ieee"), (False, "ieee", "tf32")):
            switches(allowed, not allowed)
            assert ask("conv", torch.float32) == ask("input_relevance", torch.float32) == kind
            assert ask("linear", torch.float32) == ask("linear_signed", torch.float32) == other
            assert ask("conv", torch.float32, other) == other
            assert ask("linear", torch.bfloat16) == ask("conv", torch.float16, "ieee") == "half"
    assert len(kinds) == 14
    configs.configuration("conv", "medium", GPU, torch.float32)
    assert len(kinds) == 14  # Asked no longer.


def test_configurations_have_names_of_their_own():
    every = configs.configurations("linear", torch.float32)
    tf32, ieee = (configs.configurations("linear", torch.float32, p) for p in ("tf32", "ieee"))
    assert every == {**tf32, **ieee}
    assert configs.configurations("linear", torch.bfloat16, "ieee") == configs.configurations("linear", torch.float16)
    for name, config in every.items():
        assert name == str(config)
        assert Config(16, 16, 16) is not config
    with pytest.raises(TableError, match="no table has a row for the kernel 'lienar'"):
        configs.configurations("lienar", torch.float32)


def test_what_has_no_row_is_an_error():
    with pytest.raises(TableError, match=r"no configuration for the kernel 'lienar', shape class 'many', kind 'half'"):
        configs.configuration("lienar", "many", CPU, torch.float16)


# A user's own table


@pytest.mark.usefixtures("gpu")
def test_a_users_table_goes_first():
    before = configs.configuration("linear", "many", GPU, torch.float16)
    put(table(row(microseconds=12.5)))
    assert configs.configuration("linear", "many", GPU, torch.float16) == before  # Remembered.
    configs.reload()
    assert configs.configuration("linear", "many", GPU, torch.float16) == Config(64, 32, 16, 2, 5)
    assert configs.configuration("linear", "many", GPU, torch.bfloat16) == Config(64, 32, 16, 2, 5)
    # Of other kinds and classes it says nothing.
    default = configs.table("sm90").rows
    assert configs.configuration("linear", "few", GPU, torch.float16) in default.values()
    assert configs.configuration("linear", "many", GPU, torch.float32, "tf32") in default.values()
    assert configs.configuration("linear", "many", CPU, torch.float16) in configs.table("interpreter").rows.values()


@pytest.mark.usefixtures("gpu")
def test_rows_for_all_shapes_and_all_kinds():
    put(table(row(shape_class="*", kind="*"), row(kind="half", num_warps=1)))
    assert configs.configuration("linear", "few", GPU, torch.float32, "ieee") == Config(64, 32, 16, 2, 5)
    assert configs.configuration("linear", "some", GPU, torch.float16) == Config(64, 32, 16, 2, 5)
    assert configs.configuration("linear", "many", GPU, torch.float16) == Config(64, 32, 16, 1, 5)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it cannot be read: "),
        ("[1, 2", "it cannot be read: "),
        ([], "expected an object with 'format': 1"),
        (table(row(), format=2), "expected an object with 'format': 1"),
        (table(device="h100"), "'device' must be one of sm80, sm90, other, interpreter, got 'h100'"),
        (table(rows={}), "'rows' must be a list"),
        (table(5), "row 0: expected an object, got 5"),
        (table(row(), row()), r"row 1: a second row for \('linear', 'many', 'half'\)"),
        (table(row(), row(kind="*")), r"row 1: a second row for"),
        (table(row(warps=4)), "row 0: unknown entries warps"),
        (table(row(kernel="")), "row 0: 'kernel' must be a name, got ''"),
        (table(row(kind="fp8")), "row 0: 'kind' must be one of tf32, ieee, half or '\\*', got 'fp8'"),
        (table(row(block_m=48)), "row 0: 'block_m' must be a power of two up to 4096, got 48"),
        (table(row(block_k=True)), "row 0: 'block_k' must be a power of two up to 4096, got True"),
        (table(row(num_warps=64)), "row 0: 'num_warps' must be a power of two up to 32, got 64"),
        (table(row(num_stages=0)), "row 0: 'num_stages' must be 1 to 8, got 0"),
        (table(row(route="cudnn")), "row 0: 'route' must be 'fused' or 'library', got 'cudnn'"),
        (table(row(), measured={"device": NAME}), "'measured' must be null or name device, triton, date, got"),
        (table(row(), measured=None), f"it was measured on None, this is {NAME} with Triton 3.7.1"),
        (
            table(row(), measured={"device": "NVIDIA A100", "triton": "3.6.0", "date": "2026-01-31"}),
            f"it was measured on NVIDIA A100 with Triton 3.6.0, this is {NAME} with Triton 3.7.1",
        ),
    ],
)
def test_a_broken_table_is_an_error_that_says_what_to_do(content, message):
    path = put(content)
    for _ in range(2):
        with pytest.raises(TableError, match=message) as caught:
            configs.configuration("linear", "many", GPU, torch.float16)
        assert str(path) in str(caught.value)
        assert "delete the file, and write it anew with 'python -m fastlrp.tune'" in str(caught.value)
    path.unlink()
    configs.configuration("linear", "many", GPU, torch.float16)


def test_a_broken_table_of_fastlrps_own_is_an_installation_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "_TABLES", tmp_path)
    with pytest.raises(TableError, match=r"interpreter.json: it cannot be read: .*; fastlrp is not installed as it"):
        configs.table("interpreter")


def test_where_tables_lie(tmp_path, monkeypatch):
    assert configs.own_path("NVIDIA A100/80 GB", "3.6.0+git").name == "NVIDIA-A100-80-GB-triton-3.6.0-git.json"
    assert configs.own_path("x", "3").parent == tmp_path / "cache" / "kernels"
    monkeypatch.delenv("FASTLRP_CACHE")
    home = tmp_path / "home"
    monkeypatch.setattr(Path, "home", lambda: home)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    expected = {
        "linux": home / ".cache", "darwin": home / "Library" / "Caches", "win32": home / "AppData" / "Local",
    }  # fmt: skip
    for platform, folder in expected.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert configs.cache_folder() == folder / "fastlrp"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert configs.cache_folder() == tmp_path / "local" / "fastlrp"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert configs.cache_folder() == tmp_path / "xdg" / "fastlrp"


def test_choices_nest_and_end_with_their_block():
    inner, outer = Config(32, 16, 16), Config(16, 32, 16)

    def ask(kernel="linear"):
        return configs.configuration(kernel, "many", CPU, torch.float16)

    default = ask()
    with configs.choosing(lambda *asked: outer):
        with configs.choosing(lambda kernel, *rest: inner if kernel == "linear" else None):
            assert (ask(), ask("conv")) == (inner, outer)
        assert ask() == outer
        with pytest.raises(KeyError), configs.choosing(lambda *asked: inner):
            raise KeyError
        assert ask() == outer
    assert ask() == default
