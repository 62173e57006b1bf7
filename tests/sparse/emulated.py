"""The instructions of AMX on a processor without them: tests/native/amx, loaded before the extension that ships.

``run`` starts pytest with the emulator under it; there this module is a plugin, which says how many of each instruction
were executed and fails a test behind which a thread has tiles configured.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlrp.backends.extension import extension

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests" / "native" / "amx"
INSTRUCTIONS = ("ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tileloaddt1", "tilestored",
                "tdpbf16ps")  # fmt: skip
EMULATOR = ("emulator.cpp", "decode.cpp", "tiles.cpp")
VIOLATION = 86
_LIBRARY = "FASTLRP_TEST_AMX"
_SAYS = "emulated AMX: "


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def why_not() -> str | None:
    """Why AMX is not emulated here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "its instructions are emulated on Linux and x86-64 only"
    if _LIBRARY not in os.environ and "amx" in extension().available_bf16_units():
        return "this processor has AMX: what tests every unit runs on it"
    if "avx512" not in extension().available_isas():
        return "the kernel with AMX also needs AVX-512, which this processor does not have"
    missing = [name for name in (compiler(), "objdump") if shutil.which(name) is None]
    return f"the emulator needs {' and '.join(missing)}" if missing else None


def built(name: str, *sources: str, flags: tuple[str, ...] = ()) -> Path:
    """What the compiler makes of these files in tests/native/amx, kept for each state of them."""
    command = [compiler(), "-std=c++20", "-O1", "-g1", "-Wall", "-Wno-register", "-pthread", *flags]
    texts = [path.read_text() for path in (*sorted(HERE.iterdir()), HERE.parent / "check.h")]
    state = hashlib.sha256("\0".join((*command, *texts)).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{name}_{state}"
    with (folder / "lock_amx").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            part = out.with_suffix(".part")
            made = subprocess.run(
                [*command, *(str(HERE / source) for source in sources), "-o", str(part)], capture_output=True, text=True
            )
            if made.returncode:
                raise RuntimeError(f"tests/native/amx does not compile:\n{made.stderr[-6000:]}")
            part.rename(out)
    return out


def library() -> Path:
    """The emulator as a library that is loaded before all others."""
    return built("amx.so", *EMULATOR, flags=("-fPIC", "-shared"))


def identifying(file: str) -> list[int]:
    """Where a library has the instructions CPUID and XGETBV, from its beginning."""
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True)
    return [int(place, 16) for place in re.findall(r"^ *([0-9a-f]+):\t(?:cpuid|xgetbv)", text.stdout, re.MULTILINE)]


def environment(**more: str) -> dict[str, str]:
    """Of a process in which AMX is emulated."""
    path = str(library())
    return {**os.environ, "LD_PRELOAD": path, _LIBRARY: path, "OMP_NUM_THREADS": "1", **more}


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Pytest with these arguments where AMX is emulated."""
    plugins = ("-p", "no:faulthandler", "-p", "no:cacheprovider", "-p", __name__)  # the first one takes the signal too
    command = [sys.executable, "-m", "pytest", *plugins, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(**more))


def said(output: str) -> dict[str, int]:
    """What the plugin counted: each instruction, and threads that configured tiles."""
    found = re.search(f"^{_SAYS}(.*)$", output, re.MULTILINE)
    assert found is not None, output
    return dict(json.loads(found[1]))


# Where AMX is emulated.


def emulator() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ[_LIBRARY])


def begin() -> None:
    """Makes the extension find AMX, as it asks for it: by CPUID and XGETBV, then of the system."""
    file = extension().__file__
    places = identifying(file)
    if emulator().amx_emulator_patch(file.encode(), (ctypes.c_uint64 * len(places))(*places), len(places)):
        raise RuntimeError(f"{file}: what asks for the processor's features could not be written over")
    units = extension().available_bf16_units()
    if "amx" not in units:
        raise RuntimeError(f"the extension does not find the emulated AMX, but {units}")


def counted() -> dict[str, int]:
    counts = (ctypes.c_uint64 * len(INSTRUCTIONS))()
    emulator().amx_emulator_counts(counts)
    threads = emulator().amx_emulator_threads()
    return {**dict(zip(INSTRUCTIONS, counts, strict=True)), "threads": threads}


def pytest_configure() -> None:
    begin()


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """No thread keeps its tiles."""
    yield
    assert emulator().amx_emulator_configured() == 0, "a thread's tiles are still configured"


def pytest_unconfigure() -> None:
    print(f"\n{_SAYS}{json.dumps(counted())}", flush=True)
