"""The CUDA sources compile with nvcc for sm_90a (sm_80 in a full run) without spills; the edges with its headers.

What the sources do on the host is compiled for the emulator (:mod:`tests.cuda.emulated`), and not a second time here.
Neither needs a GPU. Skipped, with the reason, where there is no nvcc.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda.emulated import MODE, ROOT, folder_of_objects, included, includes, toolkit

ARCHITECTURES = {"sm_80": "arch=compute_80,code=sm_80", "sm_90a": "arch=compute_90a,code=sm_90a"}
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
EDGES = sorted((ROOT / "csrc" / "edge" / "cuda").glob("*.cpp"))
"""Those that have a part of their own for a PyTorch with CUDA; the other edges include nothing of CUDA."""
# A block has at most 227 KB of shared memory, of which 48 KB without asking for it.
STATIC_SHARED = 48 * 1024


def nvcc() -> str:
    home = toolkit()
    found = shutil.which("nvcc") or (str(home / "bin" / "nvcc") if home and (home / "bin" / "nvcc").exists() else None)
    if found is None:
        pytest.skip("there is no nvcc")
    return found


def compiled(source: Path, architecture: str = "sm_90a") -> tuple[str, Path]:
    """What ptxas said of every kernel, and the file with the kernels; compiled once for each state of the source."""
    compiler = nvcc()
    texts: dict[Path, str] = {}
    included(source, texts)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    state = hashlib.sha256("\0".join((*texts.values(), version)).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{source.stem}_{architecture}_{state}.fatbin"
    log = out.with_suffix(".log")
    with (folder / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (log.exists() and out.exists()):
            _compile(compiler, source, architecture, out, log)
    return log.read_text(), out


def _compile(compiler: str, source: Path, architecture: str, out: Path, log: Path) -> None:
    command = [
        compiler,
        "-std=c++20",
        "-O3",
        "-gencode",
        ARCHITECTURES[architecture],
        "-Xptxas",
        "-v",
        f"-I{ROOT / 'csrc'}",
    ]
    part = out.with_suffix(".part.fatbin")
    made = subprocess.run([*command, "-fatbin", str(source), "-o", str(part)], capture_output=True, text=True)
    assert made.returncode == 0, f"{source.name} does not compile:\n{made.stderr[-4000:]}"
    part.rename(out)
    log.write_text(made.stderr)


def figures(log: str) -> list[dict[str, str | int]]:
    """One entry per kernel and architecture: name, registers, stack frame, spills, static shared memory."""
    found: list[dict[str, str | int]] = []
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", log)[1:]:
        head = re.match(r"ptxas info\s+: Compiling entry function '(\S+)' for '(\w+)'", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert head is not None, part
        assert frame is not None, part
        assert registers is not None, part
        found.append(
            {
                "kernel": head[1],
                "architecture": head[2],
                "stack": int(frame[1]),
                "spills": int(frame[2]) + int(frame[3]),
                "registers": int(registers[1]),
                "shared": 0 if shared is None else int(shared[1]),
            }
        )
    return found


def complaints(log: str) -> list[str]:
    return [
        f"{row['kernel']} for {row['architecture']}: {row}"
        for row in figures(log)
        if row["spills"] or int(row["registers"]) > 255 or int(row["shared"]) > STATIC_SHARED
    ]


@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.full), "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernels_compile_without_spills(source, architecture):
    log, _ = compiled(source, architecture)
    rows = figures(log)
    assert {row["architecture"] for row in rows} <= {architecture}
    assert complaints(log) == []


def test_every_kernel_is_looked_at():
    assert sum(len(figures(compiled(source)[0])) for source in SOURCES) > 25


def test_a_kernel_that_spills_is_noticed(tmp_path):
    """Sixteen sums of sixty-four values that a run-time index chooses from cannot stay in 32 registers."""
    source = tmp_path / "greedy.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) greedy(const float* x, float* y) {\n"
        "  float kept[96];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 96; ++i) kept[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 96; ++i) y[(95 - i) * 1024 + threadIdx.x] = kept[i] * kept[(i * 7) % 96];\n"
        "}\n"
    )
    command = [nvcc(), "-O3", "-arch=sm_80", "-Xptxas", "-v", "-c", str(source), "-o", str(tmp_path / "greedy.o")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert any("greedy" in line for line in complaints(made.stderr))


def test_shared_memory_is_declared_in_one_place():
    """The emulator poisons what ``shared_array`` and ``dynamic_shared`` give, and cannot see any other."""
    for path in sorted((ROOT / "csrc").rglob("*.cu*")) + sorted((ROOT / "csrc").rglob("*.h")):
        if path.name != "device.h":
            assert "__shared__" not in re.sub(r"//.*", "", path.read_text()), path


@pytest.fixture(scope="module")
def edge_command():
    """What checks the syntax and types of a file."""
    compiler = os.environ.get("CXX", "g++")
    if toolkit() is None or shutil.which(compiler) is None:
        pytest.skip("there are no headers of a CUDA toolkit or no g++")
    return [compiler, *MODE, "-DFASTLRP_WITH_CUDA=1", *includes(), "-fsyntax-only"]


@pytest.mark.parametrize("source", [*EDGES, ROOT / "csrc" / "bindings.cpp"], ids=lambda path: path.name)
def test_edges_compile_for_cuda(source, edge_command):
    texts: dict[Path, str] = {}
    included(source, texts)
    state = hashlib.sha256("\0".join((*texts.values(), *edge_command)).encode()).hexdigest()[:16]
    checked = folder_of_objects() / f"{source.stem}_{state}.checked"
    if checked.exists():  # In this state of the sources.
        return
    made = subprocess.run([*edge_command, str(source)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]
    checked.touch()
