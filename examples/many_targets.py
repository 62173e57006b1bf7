"""One forward pass, many questions: classes, best answers, a difference of classes, layers, a stream into a memmap.

The network is a small residual one with batch norm and random weights, 100 classes; what matters is how to ask.
Run it: ``python examples/many_targets.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fastlrp

CLASSES = 100


class Block(nn.Module):
    """Two convolutions with batch norm, and the input added to their result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(y))).relu()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential()
    layers.add_module("stem", nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    layers.add_module("block1", Block(16))
    layers.add_module("widen", nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()))
    layers.add_module("block2", Block(32))
    layers.add_module("pool", nn.AdaptiveAvgPool2d(1))
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("head", nn.Linear(32, CLASSES))
    return layers.eval()


def ask(record: fastlrp.ForwardRecord) -> dict[str, Tensor]:
    """Several questions to one forward pass. Results have the target axis K behind the batch axis."""
    answers = {
        "class 7": record.relevance(7),
        "classes 3, 1, 4": record.relevance([3, 1, 4]),
        "five best of each sample": record.relevance("top5"),
        "own classes for each sample": record.relevance(torch.tensor([[0, 1], [2, 3]])),
        "score 1 for every class": record.relevance([3, 1], initial="one"),
        "one map per class, channels summed": record.relevance("all", reduce="channels"),
    }
    # A float tensor is the initial relevance itself. Here: what speaks for the best class and against the second?
    best = record.output.topk(2).indices
    contrast = torch.zeros(2, 1, CLASSES)
    contrast[torch.arange(2), 0, best[:, 0]] = 1.0
    contrast[torch.arange(2), 0, best[:, 1]] = -1.0
    answers["best against second"] = record.relevance(contrast)
    return answers


def stream_to_file(explainer: fastlrp.Explainer, x: Tensor, path: Path) -> np.memmap:
    """All classes, block by block within the explainer's ``max_memory``, into a file of ``(B, K, H, W)``."""
    with explainer.forward(x) as record:
        shape = (len(x), CLASSES, *x.shape[2:])
        maps = np.memmap(path, np.float32, mode="w+", shape=shape)
        for block, relevance in record.stream("all", reduce="channels"):
            maps[:, block.start : block.stop] = relevance.numpy()
    return maps


def main() -> None:
    model = network()
    x = torch.randn(2, 3, 32, 32)
    explainer = fastlrp.Explainer(model, "epsilon_plus")

    with explainer.forward(x) as record:
        print(f"one forward pass, {record.cached_bytes / 2**20:.1f} MiB kept; x is {tuple(x.shape)}\n")
        for question, relevance in ask(record).items():
            print(f"{question:<36}{tuple(relevance.shape)!s:>20}")

        print("\nsum of the relevance of class 7, sample 0, from the output down")
        layers = record.relevance(7, layers=["block2", "block1", "stem"])
        for name in ("output", "block2", "block1", "stem", "input"):
            print(f"  {name:<8}{float(layers[name][0].sum()):+.5f}  {tuple(layers[name].shape)}")

    budget = fastlrp.Explainer(model, "epsilon_plus", max_memory="4MB")
    with tempfile.TemporaryDirectory() as folder:
        maps = stream_to_file(budget, x, Path(folder) / "relevance.f32")
        with budget.forward(x) as record:
            blocks = [len(block) for block, _ in record.stream("all", reduce="channels")]
            # The same file in one call: out= takes a memmap.
            record.relevance("all", reduce="channels", out=maps)
        print(f"\n{CLASSES} classes within 4 MiB: blocks of {blocks} targets, file of {maps.nbytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
