"""The heatmapping.org tutorial, step by step: an MLP on digits, then VGG-16 on a photograph.

Part one trains a 784-300-100-10 network on scikit-learn's handwritten digits (no download), prints class scores and
explains twelve digits. Part two takes VGG-16, prints its ten highest scores, follows the relevance of the highest down
the layers to the pixels, and gives the same network a larger image. Its weights are random unless ``--weights`` names a
file of torchvision's (``torch.save(torchvision.models.vgg16(weights="DEFAULT").state_dict(), "vgg16.pt")``).

``docs/from_tutorial.md`` sets the tutorial's lines beside these. Run it: ``python examples/tutorial.py --help``.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Explainer
from fastlrp.composites.tutorial import IMAGENET_MEAN, IMAGENET_STD, tutorial_mlp, tutorial_vgg16
from fastlrp.convolutional import as_convolutions

SHOWN = (31, 21, 11, 1)
"""The layers of VGG-16 whose relevance the tutorial shows: that of their inputs."""

# Part one: a fully-connected network on digits


def load_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training digits ``(N, 784)`` in [-1, 1] with classes ``(N,)``, and a fifth held out; scaled up from 8x8."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(small, (28, 28), mode="bilinear", align_corners=False).flatten(1)
    classes = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out, training = order[: len(order) // 5], order[len(order) // 5 :]
    return images[training], classes[training], images[held_out], classes[held_out]


def train_mlp(images: Tensor, classes: Tensor, seed: int, epochs: int) -> nn.Sequential:
    """The tutorial's network, trained for a few seconds."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    nn.init.normal_(model[0].weight, 0, 0.005)  # Where digits are never drawn, weights stay what they are.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), classes[part]).backward()
            optimizer.step()
    return model.eval()


def explain_digits(model: nn.Module, x: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Relevance of each digit's own class, ``(B, 1, …)`` by layer: ``"1"`` and ``"3"`` are the hidden layers."""
    explainer = Explainer(model, tutorial_mlp(low=-1.0, high=1.0))
    with explainer.forward(x) as record:
        return record.relevance(classes.unsqueeze(1), layers=["1", "3"])


def digits(out: Path, seed: int, epochs: int = 15) -> dict[str, Any]:
    """Part one; returns what it found."""
    training, training_classes, images, classes = load_digits(seed)
    model = train_mlp(training, training_classes, seed, epochs)
    with torch.no_grad():
        scores = model(images)
    error = float((scores.argmax(1) != classes).float().mean())
    print(f"784-300-100-10 on {len(images)} held-out digits: {100 * error:.1f} % errors\n")

    x, T = images[:12], classes[:12]
    print("class scores of three digits")
    for i in range(3):
        line = "  ".join(f"[{k}] {score:5.1f}" for k, score in enumerate(scores[i].tolist()))
        print(f"  a {int(T[i])}:  {line}")
    relevance = explain_digits(model, x, T)
    print("\nrelevance per layer, sum over the layer of each of the three")
    for name, layer in (("output", "output"), ("100", "3"), ("300", "1"), ("pixels", "input")):
        sums = relevance[layer][:3, 0].flatten(1).sum(1).tolist()
        print(f"  {name:<8}" + "".join(f"{value:9.3f}" for value in sums))

    rows = [t.reshape(12, 28, 28).permute(1, 0, 2).reshape(28, 12 * 28).numpy() for t in (x, relevance["input"][:, 0])]
    path = out / "tutorial_mlp.png"
    picture(path, [[("", rows[0], "gray")], [("", rows[1], None)]], (9.0, 0.78))
    print(f"\npicture: {path}\n")
    return {"error": error, "scores": scores[:12], "classes": T, "relevance": relevance, "model": model, "x": x}


# Part two: VGG-16

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16(classes: int = 1000) -> nn.Sequential:
    """VGG-16 with the names that torchvision's has, weights by the rules that it was trained from."""
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(True)] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    dense: list[nn.Module] = [
        nn.Linear(512 * 7 * 7, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout(),
        nn.Linear(4096, classes),
    ]  # fmt: skip
    for layer in (*layers, *dense):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    parts = OrderedDict(
        features=nn.Sequential(*layers), avgpool=nn.AdaptiveAvgPool2d(7), flatten=nn.Flatten(),
        classifier=nn.Sequential(*dense),
    )  # fmt: skip
    return nn.Sequential(parts).eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """A ``state_dict`` of torchvision's VGG-16; nothing else in the file is executed.

    Raises:
        SystemExit: if there is no such file, or it holds something else.
    """
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever is wrong with the file, say so in a line
        raise SystemExit(f"--weights {path} is not a state_dict of VGG-16: {type(error).__name__}: {error}") from error


def load_image(path: Path | None, size: int) -> Tensor:
    """The middle of a photograph, ``(1, 3, size, size)`` in [0, 1]; one of scikit-learn's if there is no path.

    Raises:
        SystemExit: if the file is no image.
    """
    if path is None:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image("china.jpg")
    else:
        from PIL import Image

        try:
            pixels = np.asarray(Image.open(path).convert("RGB"))
        except OSError as error:
            raise SystemExit(f"--image {path}: {error}") from error
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255
    side = min(image.shape[2:])
    top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
    square = image[:, :, top : top + side, left : left + side]
    return F.interpolate(square, (size, size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


def photograph(out: Path, seed: int, weights: Path | None, image: Path | None, larger: int) -> dict[str, Any]:
    """Part two; returns what it found."""
    torch.manual_seed(seed)
    model = vgg16()
    if weights is not None:
        load_weights(model, weights)
    network = as_convolutions(model, 224)
    pixels = load_image(image, 224)
    x = normalised(pixels)

    explainer = Explainer(network, tutorial_vgg16())
    # Layer l of the tutorial is network[l], and the relevance of its input that of the output of network[l - 1].
    names = {l: str(l - 1) for l in SHOWN}
    with explainer.forward(x) as record:
        scores = record.output.flatten(1)
        best = scores[0].topk(10)
        relevance = record.relevance(int(best.indices[0]), layers=list(names.values()))
    print(f"VGG-16, {'random weights' if weights is None else weights}: the ten highest scores")
    for score, k in zip(*(t.tolist() for t in best), strict=True):
        print(f"  class {k:>4}  {score:8.3f}")

    maps = {f"layer {l}": relevance[name][0, 0].sum(0) for l, name in names.items()}
    maps["pixels"] = relevance["input"][0, 0].sum(0)
    print(f"\nrelevance of class {int(best.indices[0])} per layer: size of the map, its sum")
    for name, found in maps.items():
        print(f"  {name:<9} {found.shape[0]:>4} x {found.shape[1]:<4} {float(found.sum()):9.3f}")
    panels: list[Any] = [("image", pixels[0].permute(1, 2, 0).numpy(), None)]
    panels += [(name, found.numpy(), None) for name, found in maps.items()]
    path = out / "tutorial_vgg.png"
    picture(path, [panels], (11.0, 2.1))
    print(f"\npicture: {path}")

    found = score_map(network, image, larger, int(best.indices[0])) if larger else None
    return {"scores": scores, "best": best, "maps": maps, "score map": found, "network": network, "x": x}


def score_map(network: nn.Module, image: Path | None, size: int, target: int) -> Tensor:
    """Scores of one class on a larger image, one for each place of the 7x7 kernel."""
    with torch.no_grad():
        scores = network(normalised(load_image(image, size)))[0, target]
    print(f"\nthe same network on {size} x {size} pixels: a map of {scores.shape[0]} x {scores.shape[1]} scores")
    print("\n".join("  " + "".join(f"{value:8.2f}" for value in row) for row in scores.tolist()))
    return scores


# Pictures


def picture(path: Path, rows: list[list[tuple[str, Any, str | None]]], size: tuple[float, float]) -> None:
    """A grid of ``(title, array, colour map)``: relevance ``(H, W)`` in the tutorial's look, or an image.

    Relevance is red where it is positive and blue where it is negative, on a scale of ten times the cubic mean of its
    size, ``b = 10 (mean |R|^3)^(1/3)``; the colours are a little darker than matplotlib's.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap

    shades = plt.get_cmap("seismic")(np.arange(256))
    shades[:, :3] *= 0.85
    width, height = size
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(width, height * len(rows)), dpi=100, squeeze=False)
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.99 if not rows[0][0][0] else 0.88, 0.03, 0.06)
    for line, row in zip(axes, rows, strict=True):
        for panel, (title, array, colours) in zip(line, row, strict=True):
            limit = 10 * float((np.abs(array) ** 3).mean()) ** (1 / 3)
            if array.ndim == 3 or colours:
                panel.imshow(array, cmap=colours)
            else:
                panel.imshow(array, cmap=ListedColormap(shades), vmin=-limit, vmax=limit, interpolation="nearest")
            panel.set_title(title, fontsize=9, pad=3)
            panel.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description="The heatmapping.org tutorial, step by step.")
    parser.add_argument("--part", choices=("mlp", "vgg", "both"), default="both", help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures (%(default)s)")
    parser.add_argument("--weights", type=Path, help="state_dict of torchvision's VGG-16 (.pt); random without")
    parser.add_argument("--image", type=Path, help="photograph for VGG-16; one of scikit-learn's without")
    parser.add_argument("--larger", type=int, default=288, help="side of the larger image, 0: none (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the training, the weights (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (%(default)s)")
    options = parser.parse_args(arguments)
    if 0 < options.larger < 224:
        parser.error(f"--larger must be at least 224, the size that VGG-16 was made for, or 0; got {options.larger}")
    torch.set_num_threads(options.threads)
    if options.part != "vgg":
        digits(options.out, options.seed)
    if options.part != "mlp":
        photograph(options.out, options.seed, options.weights, options.image, options.larger)
    print(f"\n{time.perf_counter() - start:.1f} seconds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
