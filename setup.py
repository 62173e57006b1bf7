"""Builds ``fastlrp._C``: all of csrc but csrc/cuda always, that when PyTorch and nvcc allow it.

The extension includes no header of PyTorch and links to no library of it (csrc/edge/tensor.h), so that one build runs
with every version from 2.11 on. PyTorch is asked here for the version of its CUDA only, and builds csrc/cuda.

Environment: ``FASTLRP_BUILD_CUDA`` = ``auto`` (default), ``0`` or ``1`` (fail, with the reason, where it cannot be
built); ``TORCH_CUDA_ARCH_LIST`` (default: sm_80, sm_90a, and PTX for later GPUs) and ``MAX_JOBS`` as for any PyTorch
extension.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension
except ImportError:
    torch, CUDA_HOME = None, None
    from setuptools.command.build_ext import build_ext as BuildExtension

ROOT = Path(__file__).parent
# No -march=native: kernels carry several instruction sets and choose at run time. No fast-math: the two -fno- flags
# change no result, they only allow a select instead of a branch.
CXX_FLAGS = ["-std=c++20", "-O3", "-fvisibility=hidden", "-fno-trapping-math", "-fno-math-errno", "-g0", "-Wall"]
NVCC_FLAGS = ["-O3", "-lineinfo"]  # no fast-math here either; line numbers for profilers cost nothing
ARCHITECTURES = "8.0+PTX;9.0a"
# Apple's clang has no OpenMP; there the kernels run on one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


# What csrc/cuda reads and links to.
HEADERS = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h")
LIBRARIES = ("libcudart.so*", "libcudart.dylib", "cudart.lib")


def pybind11_headers() -> str:
    """Of the package, or those that PyTorch brings along."""
    try:
        import pybind11

        return pybind11.get_include()
    except ImportError:
        if torch is not None:
            return str(Path(torch.__path__[0]) / "include")
    raise SystemExit(
        "fastlrp's extension is bound with pybind11, which is not installed. Install it first (pip install "
        "'pybind11>=2.13' setuptools wheel ninja), or let pip do it: leave out --no-build-isolation."
    )


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def cuda_reason() -> str | None:
    """Why csrc/cuda cannot be built here, or None."""
    if not sources("csrc/cuda/*.cu"):
        return "it has no .cu file"
    if torch is None:
        return "there is no PyTorch to build it for (with pip: --no-build-isolation)"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    if CUDA_HOME is None:
        return "there is no nvcc (set CUDA_HOME)"
    nvcc = Path(CUDA_HOME) / "bin" / "nvcc"
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{nvcc} does not run: {error}"
    found = re.search(r"release (\d+)", text)
    if found is None or found[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is CUDA {found[1] if found else '?'}, PyTorch is built for CUDA {torch.version.cuda}"
    return missing_of_toolkit(Path(CUDA_HOME))


def missing_of_toolkit(home: Path) -> str | None:
    """Which header or library of the toolkit is missing: packages of nvcc alone bring neither."""
    for header in HEADERS:
        if not any((folder / header).is_file() for folder in (home / "include", *home.glob("targets/*/include"))):
            return f"{home} has nvcc but not {header}: install the toolkit's headers too (cuda-toolkit)"
    folders = (home / "lib64", home / "lib", home / "lib" / "x64", *home.glob("targets/*/lib"))
    if not any(any(folder.glob(pattern)) for folder in folders for pattern in LIBRARIES):
        return f"{home} has nvcc but not the library cudart: install the whole toolkit (cuda-toolkit)"
    return None


def build_cuda() -> tuple[bool, str]:
    """Whether to build csrc/cuda, and the line that says so."""
    wish = os.environ.get("FASTLRP_BUILD_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"FASTLRP_BUILD_CUDA: expected 0, 1 or auto, got {wish!r}")
    reason = "FASTLRP_BUILD_CUDA=0" if wish == "0" else cuda_reason()
    if reason is None:
        return True, f"built with CUDA {torch.version.cuda}"
    if wish == "1":
        raise SystemExit(f"FASTLRP_BUILD_CUDA=1, but csrc/cuda cannot be built: {reason}")
    return False, f"not built: {reason}"


def kernel_folders() -> list[str]:
    """Packages of the stems in kernels/ that have several files."""
    return [f"fastlrp.kernels.{path.parent.name}" for path in sorted(ROOT.glob("kernels/*/__init__.py"))]


with_cuda, cuda_line = build_cuda()
if with_cuda:
    cuda_line += " for " + os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES).replace(";", " ")
print(f"fastlrp: csrc/cuda is {cuda_line}", flush=True)
# Not among define_macros, which nvcc gets too: it splits them at commas and blanks.
told = {"FASTLRP_FLAGS": " ".join(CXX_FLAGS + OPENMP), "FASTLRP_CUDA": cuda_line}
cxx = [*CXX_FLAGS, *OPENMP, *(f'-D{name}="{text}"' for name, text in told.items())]
cuda_home = Path(CUDA_HOME or "")
extension = Extension(
    "fastlrp._C",
    ["csrc/bindings.cpp", *sources("csrc/common/*.cpp"), *sources("csrc/edge/*.cpp"), *sources("csrc/cpu/*.cpp")]
    + ([*sources("csrc/edge/cuda/*.cpp"), *sources("csrc/cuda/*.cu")] if with_cuda else []),
    depends=[*sources("csrc/**/*.h"), *sources("csrc/**/*.cuh"), *sources("csrc/**/*.inc")],
    include_dirs=[pybind11_headers(), *([str(cuda_home / "include")] if with_cuda else [])],
    define_macros=[("FASTLRP_WITH_CUDA", "1")] if with_cuda else [],
    extra_compile_args={"cxx": cxx, "nvcc": NVCC_FLAGS} if with_cuda else cxx,
    libraries=["cudart"] if with_cuda else [],
    library_dirs=[str(cuda_home / "lib64"), str(cuda_home / "lib")] if with_cuda else [],
    extra_link_args=[*OPENMP, *([] if sys.platform == "darwin" else ["-Wl,--as-needed"])],
    language="c++",
)


class Build(BuildExtension):
    """Says in its last line what to do when a compiler fails."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            out = (
                "build without CUDA (FASTLRP_BUILD_CUDA=0) or name another toolkit (CUDA_HOME=/path)"
                if with_cuda
                else "a compiler for C++20 is needed (g++ 11 or newer, clang 14 or newer; CXX names it)"
            )
            raise SystemExit(
                f"fastlrp: the extension does not compile ({reason}); {out}. The reasons stand above."
            ) from None


if torch is None:  # Whose build compiles side by side as it is.
    from pybind11.setup_helpers import ParallelCompile

    ParallelCompile("MAX_JOBS").install()

setup(
    packages=[*find_namespace_packages(include=["fastlrp", "fastlrp.*"]), "fastlrp.kernels", *kernel_folders()],
    package_dir={"fastlrp.kernels": "kernels"},
    package_data={"fastlrp": ["py.typed", "_C.pyi"], "fastlrp.report": ["templates/*"]},
    ext_modules=[extension],
    cmdclass={"build_ext": Build},
)
