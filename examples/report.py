"""Reports to explore: held-out handwritten digits, each explained for all ten classes, with what each layer kept.

Trains the network of ``examples/demo.py`` (no download), takes the digits that it is least sure of, and writes one HTML
file: ``python examples/report.py --out out/report.html``. Open it in a browser; no server is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from demo import load, network, train
from torch import Tensor

import fastlrp
from fastlrp import groups, report

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LAYERS = ["7", "4", "11"]  # After the second and the first max-pool, and the 48 neurons below the scores.


def least_sure(scores: Tensor, count: int) -> Tensor:
    """Samples by the distance of their two best scores, closest first."""
    best = scores.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).argsort()[:count]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a report about handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("out/report.html"), help="where it goes (%(default)s)")
    parser.add_argument("--parts", type=Path, help="where a page of the digits in patches of 2x2 goes, if anywhere")
    parser.add_argument("--digits", type=int, default=20, help="how many, the least certain first (%(default)s)")
    parser.add_argument("--composite", choices=sorted(fastlrp.composites.PRESETS), default="epsilon_plus")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the training (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    *training, images, classes = load(options.seed)
    model = network()
    train(model, *training)

    with torch.no_grad():
        scores = model(images)
    chosen = least_sure(scores, options.digits)
    says = scores.argmax(1)
    titles = [
        f"{int(classes[i])}, taken for a {int(says[i])}" if says[i] != classes[i] else f"{int(says[i])}" for i in chosen
    ]
    composite = (
        fastlrp.composites.epsilon_gamma_box(low=0.0, high=1.0)
        if options.composite == "epsilon_gamma_box"
        else fastlrp.composites.resolve(options.composite)
    )
    explainer = fastlrp.Explainer(model, composite)
    names = [f"Digit {n + 1}: a {title}" for n, title in enumerate(titles)]
    samples = report.collect(
        explainer,
        images[chosen],
        "all",
        names=names,
        target_names=NAMES,
        layers=LAYERS,
        truth=[int(classes[i]) for i in chosen],
    )
    title = "Why is it this digit?"
    path = report.write(options.out, samples, title=title, composite=composite.name, model="a small network")
    count = sum(len(sample.relevance) * len(sample.targets) for sample in samples)
    print(f"{len(samples)} digits, {count} maps, {path.stat().st_size / 1e6:.2f} MB: {path}")
    if options.parts is not None:
        parts = report.collect_parts(explainer, images[chosen], groups.patches(2), names=names, target_names=NAMES)
        print(report.write_parts(options.parts, parts, title=title, composite=composite.name, model="a small network"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
