"""The build: what it says about CUDA, what a wheel would hold, and that the set-up explains what is missing."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools
import torch

import fastlrp.kernels
from fastlrp.backends.extension import extension

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What setup.py reads, where it may write."""
    for name in ("csrc", "kernels", "fastlrp"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md", "README.md", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def setup(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "setup.py", *arguments, cwd=tree, **environment)


@pytest.fixture
def said(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """What setup.py says with this value of FASTLRP_BUILD_CUDA, run in this process up to the call of ``setup``."""

    def call(wish: str) -> str:
        monkeypatch.setenv("FASTLRP_BUILD_CUDA", wish)
        monkeypatch.chdir(tree)
        monkeypatch.setattr(setuptools, "setup", lambda **_: None)
        try:
            runpy.run_path(str(tree / "setup.py"))
        except SystemExit as error:
            return str(error)
        return capsys.readouterr().out

    return call


def test_one_line_says_why_cuda_is_not_built(tree, said):
    assert said("0") == "fastlrp: csrc/cuda is not built: FASTLRP_BUILD_CUDA=0\n"
    for file in (tree / "csrc" / "cuda").glob("*.cu") if (tree / "csrc" / "cuda").exists() else ():
        file.unlink()
    assert said("auto") == "fastlrp: csrc/cuda is not built: it has no .cu file\n"
    assert said("1") == "FASTLRP_BUILD_CUDA=1, but csrc/cuda cannot be built: it has no .cu file"
    assert said("yes") == "FASTLRP_BUILD_CUDA: expected 0, 1 or auto, got 'yes'"


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_a_pytorch_without_cuda_is_the_reason(tree, said):
    (tree / "csrc" / "cuda").mkdir(exist_ok=True)
    (tree / "csrc" / "cuda" / "pool.cu").touch()
    line = f"fastlrp: csrc/cuda is not built: this PyTorch ({torch.__version__}) is built without CUDA\n"
    assert said("auto") == line


def test_the_source_distribution_is_complete(tree):
    result = setup(tree, "-q", "sdist", "--formats=tar", FASTLRP_BUILD_CUDA="0")
    assert result.returncode == 0, result.stderr
    (archive,) = (tree / "dist").glob("*.tar")
    names = {name.split("/", 1)[-1] for name in run("tar", "tf", str(archive)).stdout.split()}
    wanted = [p for folder in ("csrc", "kernels", "fastlrp") for p in (tree / folder).rglob("*") if p.is_file()]
    assert {str(p.relative_to(tree)) for p in wanted} <= names
    assert {"LICENSE", "setup.py", "pyproject.toml", "fastlrp/py.typed"} <= names


def test_the_extension_is_the_default_build():
    info = extension().build_info()
    assert "-march=native" not in info["flags"]
    assert "fast-math" not in info["flags"]
    assert info["instruction sets"].startswith("portable")


def test_the_extension_needs_no_library_of_pytorch():
    """So that what is built beside one version of PyTorch runs with another."""
    tool = shutil.which("readelf")
    if tool is None:
        pytest.skip("there is no readelf")
    path = str(extension().__file__)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run(tool, "-d", path).stdout)
    assert needed
    assert not [name for name in needed if "torch" in name or "c10" in name]
    wanted = [line for line in run(tool, "--dyn-syms", "-W", path).stdout.splitlines() if " UND " in line]
    assert wanted
    assert not [line for line in wanted if "c10" in line or "2at" in line or "torch" in line]


def test_the_extension_builds_without_pytorch(tree):
    """With the packages that pip's own environment for a build has, and no other."""
    without = tree / "without"
    without.mkdir()
    (without / "torch.py").write_text("raise ImportError('no PyTorch here')")
    result = setup(tree, "build_ext", PYTHONPATH=str(without), CXX="echo", CC="echo", MAX_JOBS="1")
    assert "csrc/cuda is not built: there is no PyTorch to build it for" in result.stdout
    assert result.returncode == 0, result.stderr[-2000:]
    commands = [line for line in result.stdout.splitlines() if "csrc/edge/tensor.cpp" in line]
    assert commands
    assert not [command for command in commands if "torch/include" in command]


def test_triton_kernels_are_a_part_of_the_package():
    assert Path(fastlrp.kernels.__file__ or "").parent.resolve() == (ROOT / "kernels").resolve()


def test_tool_versions_are_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all("==" in tool for tool in project["optional-dependencies"]["dev"])
    assert not any(name in " ".join(project["dependencies"]) for name in ("zennit", "captum", "torchvision"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PYTHON": "no-such-python"}, "there is no 'no-such-python'; name one, Python 3.11 or later"),
        ({"PYTHON": sys.executable, "CXX": "no-such-compiler"}, "there is no C++ compiler ('no-such-compiler')"),
    ],
)
def test_setup_says_what_is_missing(environment, message, tmp_path):
    result = run("bash", "scripts/setup.sh", VENV=str(tmp_path / "venv"), **environment)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "venv").exists()


def test_setup_says_that_venv_is_missing(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = venv ] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = run("bash", "scripts/setup.sh", VENV=str(tmp_path / "venv"), PYTHON=str(python))
    assert result.returncode == 1
    assert (
        "-m venv' failed; on Debian or Ubuntu it is a package of its own: apt-get install python3-venv" in result.stderr
    )


def test_make_is_done_the_second_time(tmp_path):
    (tmp_path / "installed").touch()
    result = run("make", "-n", "install", f"VENV={tmp_path}")
    assert "scripts/setup.sh" not in result.stdout
    os.utime(tmp_path / "installed", (0, 0))
    assert "scripts/setup.sh" in run("make", "-n", "install", f"VENV={tmp_path}").stdout


def missing_of_toolkit(home: Path) -> str | None:
    """The function of setup.py, without building anything."""
    text = (ROOT / "setup.py").read_text()
    names: dict[str, object] = {"Path": Path}
    start, end = text.index("HEADERS ="), text.index("def sources")
    exec(text[start:end], names)
    start, end = text.index("def missing_of_toolkit"), text.index("def build_cuda")
    exec(text[start:end], names)
    return names["missing_of_toolkit"](home)  # type: ignore[operator, no-any-return]


def test_a_toolkit_without_headers_or_libraries_is_named(tmp_path):
    include, lib = tmp_path / "targets" / "x" / "include", tmp_path / "lib64"
    include.mkdir(parents=True)
    lib.mkdir()
    assert "has nvcc but not cuda_runtime.h" in str(missing_of_toolkit(tmp_path))
    for name in ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h"):
        (include / name).touch()
    assert "has nvcc but not the library cudart" in str(missing_of_toolkit(tmp_path))
    (lib / "libcudart.so.13").touch()
    assert missing_of_toolkit(tmp_path) is None


def test_a_failed_compile_ends_in_the_way_out(tree):
    result = setup(tree, "build_ext", "--inplace", FASTLRP_BUILD_CUDA="0", CXX="false", CC="false", MAX_JOBS="1")
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith("fastlrp: the extension does not compile (")
    assert "a compiler for C++20 is needed" in result.stderr
