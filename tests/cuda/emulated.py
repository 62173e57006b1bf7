"""The CUDA backend on the CPU: its kernels and edge functions, compiled by g++ with the emulator of tests/native/cuda.

``emulated()`` has the functions of ``fastlrp._C.cuda`` and takes CPU tensors. It is built once for each state of the
sources, in ``build/emulated``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests" / "native" / "cuda"
NAME = "fastlrp_emulated"
ORDERS = ("forward", "backward", "random")
"""In which the threads of a block run between barriers."""


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit, of which only headers are needed here."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and str(Path(nvcc).resolve().parent.parent)]
    return next((Path(h) for h in homes if h and (Path(h) / "include" / "cuda_fp16.h").exists()), None)


def why_not() -> str | None:
    """Why the emulator cannot be built, or None."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no g++"
    return "there are no headers of a CUDA toolkit (set CUDA_HOME)" if toolkit() is None else None


def sources() -> list[Path]:
    folders = (ROOT / "csrc" / "cuda", ROOT / "csrc" / "edge" / "cuda", HERE)
    found = [p for folder in folders for p in sorted(folder.iterdir()) if p.suffix in (".cu", ".cpp")]
    shared = sorted((ROOT / "csrc" / "edge").glob("*_arguments.cpp"))
    names = (
        "edge/tensors.cpp",
        "edge/tensor.cpp",
        "edge/interpreter.cpp",
        "edge/marks.cpp",
        "edge/threads.cpp",
        "common/windows.cpp",
        "common/pattern_check.cpp",
        "common/memory.cpp",
        "bindings.cpp",
    )
    return [*found, *shared, *(ROOT / "csrc" / name for name in names)]


MODE = ("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-w", f"-DFASTLRP_NAME={NAME}")


def includes() -> list[str]:
    """What finds the toolkit's headers, pybind11's and Python's."""
    import pybind11  # Whoever only asks for the emulator, as tests on a GPU do, need not have it.

    folders = (ROOT / "csrc", f"{toolkit()}/include", pybind11.get_include(), sysconfig.get_paths()["include"])
    return [f"-I{folder}" for folder in folders]


def flags() -> list[str]:
    asked = os.environ.get("FASTLRP_EMULATOR_FLAGS", "").split()
    return [*MODE, "-DFASTLRP_EMULATE", *asked, *includes(), f"-I{HERE}"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def included(path: Path, found: dict[Path, str]) -> None:
    """A file and our own headers that it includes, with their texts."""
    if path in found:
        return
    found[path] = path.read_text()
    for name in re.findall(r'#include "([^"]+)"', found[path]):
        for folder in (path.parent, ROOT / "csrc", HERE):
            if (folder / name).exists():
                included((folder / name).resolve(), found)
                break


def folder_of_objects() -> Path:
    """Where object files are kept."""
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _object(source: Path, folder: Path, compiler: str) -> Path:
    """The object file of a source, compiled if there is none of this state."""
    texts: dict[Path, str] = {}
    included(source, texts)
    state = _digest("\0".join((*texts.values(), compiler, *flags(), version("pybind11"))))
    out = folder / f"{source.parent.name}_{source.stem}_{state}.o"
    if not out.exists():
        command = [compiler, *flags(), "-x", "c++", "-c", str(source), "-o", str(out.with_suffix(".part"))]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"{source.relative_to(ROOT)} does not compile for the emulator:\n{made.stderr[-6000:]}")
        out.with_suffix(".part").rename(out)
    return out


def build() -> Path:
    """The shared library of the present sources."""
    compiler, folder = os.environ.get("CXX", "g++"), folder_of_objects()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Other test processes wait for the lock meanwhile.
            objects = list(pool.map(lambda source: _object(source, folder, compiler), sources()))
        library = folder / f"{NAME}_{_digest(' '.join(map(str, objects)))}.so"
        if not library.exists():
            part = library.with_suffix(".part")
            link = [compiler, "-shared", *os.environ.get("FASTLRP_EMULATOR_FLAGS", "").split(), *map(str, objects)]
            made = subprocess.run([*link, "-o", str(part)], capture_output=True, text=True)
            if made.returncode:
                raise RuntimeError(f"the emulator does not link:\n{made.stderr[-6000:]}")
            part.rename(library)
    return library


@cache
def emulated() -> Any:
    """The module, or a skip with the reason."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"the CUDA kernels cannot be emulated: {reason}")
    spec = importlib.util.spec_from_file_location(NAME, build())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def order(name: str, seed: int = 0) -> Iterator[None]:
    """Threads between two barriers run in this order."""
    emulated().set_order(name, seed)
    try:
        yield
    finally:
        emulated().set_order("forward", 0)
