"""The CPU kernels under the sanitizers for addresses and undefined behaviour, with the tests in tests/native."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastlrp.backends.extension import extension

ROOT = Path(__file__).parent.parent


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-s", *arguments], cwd=ROOT, capture_output=True, text=True)


def can_sanitize(compiler: str, tmp_path: Path) -> bool:
    source = tmp_path / "main.cpp"
    source.write_text("int main() { return 0; }\n")
    flags = ("-std=c++20", "-fsanitize=address,undefined")
    built = subprocess.run([compiler, *flags, str(source), "-o", str(tmp_path / "main")], capture_output=True)
    return built.returncode == 0 and subprocess.run([str(tmp_path / "main")], capture_output=True).returncode == 0


@pytest.mark.full  # `.ci/run` makes them itself.
@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_kernels_under_the_sanitizers(compiler, tmp_path):
    if shutil.which("make") is None or shutil.which(compiler) is None or not can_sanitize(compiler, tmp_path):
        pytest.skip(f"needs make, and a {compiler} whose sanitizers run here")
    built = make(f"-j{os.cpu_count()}", "sanitize", f"CXX={compiler}")
    assert built.returncode == 0, built.stdout + built.stderr
    passed = [
        line.split(":")[0] for line in built.stdout.splitlines() if line.endswith("tests passed, on 1 and on 3 threads")
    ]
    assert passed == extension().available_isas()


def test_every_native_test_is_picked_up():
    objects = make("-n", "-B", "sanitize").stdout
    for folder in ("csrc/common", "csrc/cpu", "tests/native"):
        for source in (ROOT / folder).glob("*.cpp"):
            assert f" -c {source.relative_to(ROOT)} " in objects
