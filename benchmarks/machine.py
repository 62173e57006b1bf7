"""What a measurement was made on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fastlrp.plan.paths.rates import processor

WRITTEN = ("benchmarks/results", "benchmarks/README.md", "README.md")
"""What running and rendering benchmarks writes: a change there is no change of what is measured."""


@cache
def commit() -> str:
    """The commit that is measured; ``+`` if the tree has other changes; ``unknown`` outside a repository.

    A copy without its repository can be told: ``FASTLRP_COMMIT``.
    """
    if os.environ.get("FASTLRP_COMMIT"):
        return os.environ["FASTLRP_COMMIT"]
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN))
        return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
    except FileNotFoundError:
        return "unknown"


def machine() -> str:
    """Processor and threads."""
    return f"{processor()}, {torch.get_num_threads()} threads"


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(command: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The part of a row that says what made it."""
    packages = ("zennit", "captum", "numpy", "torchvision", "transformers", "lxt", "autolrp")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "command": command,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **accelerator(torch.device(device)),
    }


def accelerator(device: torch.device) -> dict[str, Any]:
    """The device's name, and what stands between PyTorch and a GPU."""
    if device.type != "cuda":
        return {"device": device.type}
    found = torch.cuda.get_device_properties(device)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "device_bytes": found.total_memory,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
    }


@cache
def driver() -> str | None:
    """The GPU driver's version, or None if nobody says."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return lines[0] if lines else None


def peak_flops(
    size: int = 2048, repeats: int = 5, dtype: torch.dtype = torch.float32, clock: Callable[[], float] = perf_counter
) -> float:
    """Floating-point operations per second of a large matrix product or convolution, the best of a few: the peak.

    Libraries differ in what they are good at: on an AMD EPYC float32 convolutions were twice as fast as products.
    """
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    images = torch.randn(8, 256, size // 64, size // 64).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
    runs: list[tuple[float, Callable[[], object]]] = [
        (2 * size**3, lambda: torch.mm(a, b)),
        (2 * 9 * 256 * images.numel(), lambda: torch.conv2d(images, weight, padding=1)),
    ]
    best = 0.0
    for work, run in runs:
        for _ in range(repeats + 1):
            begin = clock()
            run()
            best = max(best, work / (clock() - begin))
    return best
