"""The main job on real input: which pixels of a handwritten digit speak for and against each of the ten classes?

Trains a small convolutional network on scikit-learn's handwritten digits (1,797 scans of 8x8 pixels, no download),
explains all ten classes of 100 held-out digits in one call, checks the result against the reference, writes a picture
and prints a table. ``make demo`` runs it; ``python examples/demo.py --help`` lists the options.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp

DIGITS = 100
WIDTH = 42
GRADIENTS = ("gradient", "deconvnet", "guided_backprop")


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images ``(N, 1, 8, 8)`` in [0, 1] with classes ``(N,)``, and a fifth of the scans held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    classes = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out, training = order[: len(order) // 5], order[len(order) // 5 :]
    return images[training], classes[training], images[held_out], classes[held_out]


def network() -> nn.Sequential:
    """Three convolutions, two max-pools, two linear layers: 36,122 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(256, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def train(model: nn.Module, images: Tensor, classes: Tensor, epochs: int = 20, batch: int = 64) -> None:
    """Adam on the cross-entropy; leaves the model in evaluation mode."""
    steps = epochs * -(-len(images) // batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[part]), classes[part]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def composite_of(name: str) -> fastlrp.Composite:
    """The composite of this name; the one with the box rule needs the range of the input, which is [0, 1]."""
    if name == "epsilon_gamma_box":
        return fastlrp.composites.epsilon_gamma_box(low=0.0, high=1.0)
    return fastlrp.composites.resolve(name)


def gradients(model: nn.Module, x: Tensor) -> Tensor:
    """The loop that is usual for many classes: one forward pass, then one backward pass per class."""
    x = x.clone().requires_grad_()
    scores = model(x).sum(0)
    return torch.stack([torch.autograd.grad(score, x, retain_graph=True)[0] for score in scores], dim=1)


def rates(explainer: fastlrp.Explainer, x: Tensor, initial: str, repeats: int = 15) -> tuple[float, float]:
    """Explanations per second (ten for each digit of ``x``) of fastlrp and of the loop, medians, taken in turn."""

    def ours() -> Any:
        return explainer(x, "all", initial=initial)

    times: list[list[float]] = [[], []]
    for turn in range(-3, repeats):
        for call, taken in zip((ours, lambda: gradients(explainer.model, x)), times, strict=True):
            start = time.perf_counter()
            count = call().shape[:2].numel()
            if turn >= 0:
                taken.append((time.perf_counter() - start) / count)
    return 1 / statistics.median(times[0]), 1 / statistics.median(times[1])


def check(model: nn.Module, composite: fastlrp.Composite, x: Tensor, initial: str, maps: Tensor) -> tuple[Any, float]:
    """The same network in float64 against the reference, layer by layer; and the float32 maps against the float64 ones.

    In float64, because a score near zero is a small difference of large numbers: float32 leaves few digits of it, and
    of the maps that are proportional to it, whatever computes them.

    Returns:
        the verification, and the largest relative error (2-norm) of the ten maps of one digit.
    """
    explainer = fastlrp.Explainer(copy.deepcopy(model).double(), composite)
    verification = explainer.verify(x.double(), "all", initial=initial)
    exact = explainer(x.double(), "all", initial=initial, reduce="channels")
    difference, size = ((t.flatten(1).norm(dim=1)) for t in (maps - exact, exact))
    return verification, float((difference / size).max())


def ledger(verification: Any) -> list[tuple[str, str]]:
    """Where the scores of the network's answers have gone, in per cent of their sum."""
    kept = verification.kept
    entries = (
        ("the answers' scores are at the pixels", verification.relevance),
        ("  kept by biases", kept["bias"]),
        ("  kept by epsilon", kept["stabilizer"]),
        ("  at neurons that no input reaches", kept["dead"]),
        ("  not accounted for", kept["unexplained"]),
    )
    return [
        (name, f"{100 * value / verification.score + 0.0:.4f} %".replace("-0.0000", "0.0000"))
        for name, value in entries
    ]


def picture(path: Path, x: Tensor, classes: Tensor, scores: Tensor, relevance: Tensor, title: str) -> None:
    """A grid, one row per digit: the scan, then its relevance for each of the ten classes on one colour scale.

    Args:
        x: ``(B, 1, 8, 8)``. classes: ``(B,)``. scores: ``(B, 10)``. relevance: ``(B, 10, 8, 8)``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows, columns = len(x), 1 + scores.shape[1]
    predicted = scores.argmax(1)
    limit = float(relevance.abs().flatten().quantile(0.995))
    cell, left, top, bottom = 0.74, 0.62, 0.62, 0.95
    width, height = left + columns * cell + 0.08, top + rows * (cell + 0.14) + bottom
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), dpi=100, squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - 0.08 / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=0.06,
        hspace=0.24,
    )
    for row, line in enumerate(axes):
        says, colour = int(predicted[row]), "black" if predicted[row] == classes[row] else "crimson"
        line[0].imshow(x[row, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9, "color": colour}
        line[0].set_ylabel(f"is a {int(classes[row])}\nsays {says}", **label)
        for k, panel in enumerate(line[1:]):
            shown = panel.imshow(relevance[row, k].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            panel.set_xlabel(f"{scores[row, k]:+.1f}".replace("-0.0", "+0.0"), fontsize=8, labelpad=2.5)
        for spine in line[1 + says].spines.values():
            spine.set(linewidth=2, color=colour)
        for panel in line:
            panel.set(xticks=[], yticks=[])
    for k, panel in enumerate(axes[0]):
        panel.set_title("scan" if k == 0 else f"for {k - 1}", fontsize=10, pad=4)
    place = figure.add_axes((0.25, 0.64 / height, 0.5, 0.12 / height))
    bar = figure.colorbar(shown, cax=place, orientation="horizontal", extend="both")
    bar.ax.tick_params(labelsize=8)
    figure.text(
        0.5,
        0.08 / height,
        "relevance per pixel, in units of the score: red speaks for the class, blue against it\n"
        "under each map: the class's score, which its pixels add up to, but for what biases keep; framed: the answer",
        ha="center",
        fontsize=8.5,
    )
    figure.suptitle(title, fontsize=12, y=1 - 0.1 / height, va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def show(facts: list[tuple[str, str]]) -> None:
    print("\n".join(f"{name:<{WIDTH}}{value}" for name, value in facts))


def main() -> int:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description="Explain handwritten digits: a picture and a table.")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="where the picture goes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the training (%(default)s)")
    names = sorted(fastlrp.composites.PRESETS)
    parser.add_argument("--composite", choices=names, default="epsilon_plus", help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the network is small (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    initial = "one" if options.composite in GRADIENTS else "output"

    torch.manual_seed(options.seed)
    *training, images, classes = load(options.seed)
    model = network()
    train(model, *training)
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == classes).float().mean())

    x, classes = images[:DIGITS], classes[:DIGITS]
    composite = composite_of(options.composite)
    explainer = fastlrp.Explainer(model, composite)
    with explainer.forward(x) as record:
        scores, relevance = record.output, record.relevance("all", initial=initial, reduce="channels")
    verification, rounding = check(model, composite, x, initial, relevance)
    rows = [int((classes == digit).nonzero()[0]) for digit in range(10)]
    title = f"Relevance of each pixel for each of the ten classes ({options.composite})"
    picture(options.out, x[rows], classes[rows], scores[rows], relevance[rows], title)

    facts = [
        ("accuracy on held-out digits", f"{100 * accuracy:.1f} % of {len(images)}"),
        ("explained in one call", f"{len(x)} digits x {scores.shape[1]} classes, {options.composite}"),
        ("largest error of a layer in float64", f"{verification.max_error:.1e}, against the reference"),
        ("largest error of a digit's float32 maps", f"{rounding:.1e}, against float64"),
    ]
    if initial == "output":
        facts += ledger(explainer.verify(x, "top1"))
    show(facts)
    print(f"\n{'explanations per second':<{WIDTH}}{'fastlrp':>10}{'gradient':>12}{'ratio':>8}")
    for label, part in (("100 digits, ten classes each", x), ("one digit, ten classes", x[:1])):
        ours, loop = rates(explainer, part, initial)
        print(f"{'  ' + label:<{WIDTH}}{ours:>10,.0f}{loop:>12,.0f}{ours / loop:>8.2f}")
    print("  (gradient: one forward pass, then one backward pass for each class)\n")
    show([("picture", str(options.out)), ("seconds in all", f"{time.perf_counter() - start:.1f}")])
    if not verification.ok:
        print(f"\nNOT OK: a layer differs from the reference\n{verification}")
    return 0 if verification.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
