"""How much of ``fastlrp explain FOLDER`` is not the model and its kernels.

    python -m benchmarks.folder --images 500

Makes JPEGs of 224x224 in a temporary folder, and takes in turns: the explainer alone on the same inputs, read and
stacked before; and the whole command in a process of its own, with reading, drawing and writing. Of each the fastest
turn counts, the one that other work on the machine disturbed least. The share outside is ``1 - alone / whole``: for the
images alone, and with what happens once (Python and PyTorch start, the model is made and captured).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import commit, machine
from fastlrp.cli import hub
from fastlrp.cli.preprocess import Preprocessing
from fastlrp.explainer import Explainer

SIDE = 224


@dataclass(frozen=True)
class Whole:
    """One run of the command: seconds on the clock, before the first image, and for the images."""

    wall: float
    images: float
    files: int
    bytes: int


def photograph(generator: np.random.Generator) -> np.ndarray:
    """Noise at six scales, the larger the stronger, with the three channels alike: it compresses as photographs do."""
    from PIL import Image

    total = np.zeros((SIDE, SIDE, 3))
    for scale in range(6):
        cells = 7 * 2**scale
        common = generator.normal(size=(cells, cells, 1)) + 0.4 * generator.normal(size=(cells, cells, 3))
        layers = [Image.fromarray(common[..., c].astype(np.float32)).resize((SIDE, SIDE), 3) for c in range(3)]
        total += np.stack([np.asarray(layer) for layer in layers], -1) / 2**scale
    low, high = np.quantile(total, [0.01, 0.99])
    return ((total - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def make(folder: Path, count: int) -> int:
    """The JPEGs; their size in bytes on average."""
    from PIL import Image

    generator = np.random.default_rng(0)
    size = 0
    for i in range(count):
        path = folder / f"{i:04}.jpg"
        Image.fromarray(photograph(generator)).save(path, quality=90)
        size += path.stat().st_size
    return size // count


def load(folder: Path, batch: int) -> list[Tensor]:
    """What the command makes of the images, in batches."""
    from PIL import Image

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocessing = Preprocessing(mean=mean, std=std)
    x = [preprocessing.tensor(preprocessing.picture(Image.open(path))) for path in sorted(folder.iterdir())]
    return [torch.stack(x[i : i + batch]) for i in range(0, len(x), batch)]


def alone(explainer: Explainer, batches: list[Tensor], targets: str) -> float:
    """Seconds for all batches."""
    begin = time.perf_counter()
    for x in batches:
        explainer(x, targets, reduce="channels")
    return time.perf_counter() - begin


def whole(folder: Path, options: argparse.Namespace) -> Whole:
    """The command, as a user runs it."""
    with tempfile.TemporaryDirectory() as out:
        words = ["explain", f"torchvision:{options.model}", str(folder), "--out", f"{out}/maps", "-t", options.targets]
        words += ["--preprocessing", "none", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
        words += ["--batch-size", str(options.batch_size), "--json", "-q", *options.more]
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "fastlrp", *words], capture_output=True, text=True)
        wall = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(f"the command failed with {done.returncode}: {done.stderr}")
        end = json.loads(done.stdout.splitlines()[-1])
        files = [path for path in Path(out).rglob("*") if path.suffix != ".jsonl" and path.is_file()]
        return Whole(wall, end["seconds"] - end["seconds_before"], len(files), sum(p.stat().st_size for p in files))


def main() -> None:
    parser = argparse.ArgumentParser(description="How much of a folder's time is not the model and its kernels.")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--model", default="resnet18", help="of torchvision, random weights")
    parser.add_argument("--targets", default="top5")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("more", nargs="*", help="further options of fastlrp explain, behind --")
    options = parser.parse_args()
    loaded = hub.torchvision(options.model, {"seed": 0, "weights": None, "classes": None})
    explainer = Explainer(loaded["module"])
    with tempfile.TemporaryDirectory() as place:
        size = make(Path(place), options.images)
        batches = load(Path(place), options.batch_size)
        for x in {tuple(x.shape): x for x in batches}.values():
            explainer(x, options.targets, reduce="channels")  # Captured, and the allocator has what it needs.
        computing, runs = [], []
        for _ in range(options.turns):
            computing.append(alone(explainer, batches, options.targets))
            runs.append(whole(Path(place), options))
    show(options, size, computing, runs)


def show(options: argparse.Namespace, size: int, computing: list[float], runs: list[Whole]) -> None:
    n, kernels = options.images, min(computing)
    wall, images = min(r.wall for r in runs), min(r.images for r in runs)
    print(f"{machine()}, {os.cpu_count()} cores, commit {commit()}")
    print(f"{n} JPEGs of {SIDE}x{SIDE} ({size / 1024:.0f} KiB each), {options.model}, {options.targets}: "
          f"{runs[0].files} files, {runs[0].bytes / 2**20:.1f} MiB")  # fmt: skip
    print(f"{'':38}{'seconds':>9}{'ms/image':>10}{'outside':>9}   turns")
    rows = (
        ("explainer alone, inputs in memory", kernels, computing),
        ("the command, images", images, [r.images for r in runs]),
        ("the command, everything", wall, [r.wall for r in runs]),
    )
    for name, value, turns in rows:
        outside = "" if value == kernels else f"{100 * (1 - kernels / value):.1f} %"
        print(f"{name:38}{value:9.2f}{1e3 * value / n:10.1f}{outside:>9}   {' '.join(f'{t:.2f}' for t in turns)}")
    if kernels > 1.05 * images:
        print("The explainer alone took longer than the command: other work disturbed it, so take it again.")


if __name__ == "__main__":
    main()
