"""A gallery of pictures of relevance, each made by one function: ``python examples/gallery.py --out out/gallery``.

Small networks are trained in seconds on what scikit-learn brings along and on what is made up here; nothing is
downloaded. The documentation site draws every picture anew when it is built and shows it above its function.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, groups, viz

sys.path.insert(0, str(Path(__file__).parent))
from pictures import PHOTOS, digit_network, digits, photo_network, photographs, pieces, train

STEPS = 200


@cache
def digit_reader() -> tuple[nn.Module, Tensor]:
    """A network that reads digits, and a 0, 3, 4 and 8 that it has not seen."""
    torch.manual_seed(0)
    images, classes = digits()
    training = len(images) * 4 // 5

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(training, (64,))
        return images[chosen], classes[chosen]

    model = train(digit_network(), batch, STEPS)
    unseen, labels = images[training:], classes[training:]
    return model, torch.stack([unseen[labels == digit][0] for digit in (0, 3, 4, 8)])


@cache
def photo_judge() -> tuple[nn.Module, Tensor]:
    """A network that tells a flower from a temple, and a picture with both."""
    torch.manual_seed(0)
    photos = photographs()
    model = train(photo_network(), lambda: pieces(photos, 32), STEPS)
    return model, torch.cat((photos[0, :, :, 90:258], photos[1, :, :, 40:208]), 2)


def samples_by_classes() -> Any:
    """Which pixels speak for and against each class: one forward pass, forty targets."""
    model, x = digit_reader()
    explainer = fastlrp.Explainer(model, composites.epsilon_gamma_box(low=0.0, high=1.0))
    with explainer.forward(x) as record:
        return viz.grid(
            record.relevance("all"),
            images=x,
            titles=record.output,
            column_labels=[f"for {k}" for k in range(10)],
            cell=72,
        )


def one_digit_under_eight_composites() -> Any:
    """The same digit and class under other rules. Each map has its own scale, since the sums differ."""
    model, x = digit_reader()
    names = [
        "epsilon",
        "epsilon_plus",
        "epsilon_plus_flat",
        "epsilon_alpha2_beta1",
        "gamma",
        "zplus",
        "lrp0",
        "gradient",
    ]
    maps = [
        fastlrp.explain(model, x[3:], 8, name, initial="one" if name == "gradient" else "output")[0, 0]
        for name in names
    ]
    return viz.grid([maps[:4], maps[4:]], titles=[names[:4], names[4:]], scale="cell", cell=128)


def from_layer_to_layer() -> Any:
    """The three best classes of an 8, from the input up to the output."""
    model, x = digit_reader()
    layers = fastlrp.explain(model, x[3:], "top3", composites.epsilon_gamma_box(0.0, 1.0), layers=["1", "3", "6"])
    return viz.grid(layers, images=x[3], cell=104)


def over_the_picture() -> Any:
    """A flower and a temple in one picture, and where the network sees each."""
    model, collage = photo_judge()
    composite = composites.epsilon_gamma_box(low=0.0, high=1.0)
    relevance = fastlrp.explain(model, collage[None], "all", composite)[0]
    level = viz.shared_level(list(relevance), quantile=0.99)
    row = [viz.overlay(R, collage, level=level, grey=True, alpha="relevance") for R in relevance]
    return viz.grid([row], images=[collage], column_labels=[f"for {name}" for name in PHOTOS], cell=224)


def of_patches() -> Any:
    """Relevance of parts of the picture, asked for as such: ``groups=``. Numbers of patches, not of pixels."""
    model, collage = photo_judge()
    of_parts = fastlrp.explain(model, collage[None], "all", groups=groups.patches(28))[0]  # (K, 8 * 12)
    maps = of_parts.unflatten(1, (8, 12)).repeat_interleave(28, 1).repeat_interleave(28, 2)
    return viz.grid([list(maps)], images=[collage], column_labels=[f"for {name}" for name in PHOTOS], cell=224)


class Segmenter(nn.Module):
    """A class for each pixel of a sheet of digits: 0 to 9, or 10 for the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=2, dilation=2), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(48, 11, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


def segmentation() -> Any:
    """Why is this patch of ink a part of a 3? The start is the score of one class at all pixels of a mask."""
    torch.manual_seed(0)
    images, classes = digits()

    def sheet(count: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Four digits on one sheet ``(B, 1, 16, 16)``, and the class of each pixel ``(B, 16, 16)``."""
        chosen = torch.randint(start, stop, (count, 2, 2))
        ink = images[chosen, 0].permute(0, 1, 3, 2, 4).reshape(count, 1, 16, 16)
        named = classes[chosen].repeat_interleave(8, 1).repeat_interleave(8, 2)
        return ink, torch.where(ink[:, 0] > 0.3, named, 10)

    model = train(Segmenter(), lambda: sheet(32, 0, 1400), 2 * STEPS)
    x, _ = sheet(1, 1400, 1797)
    found = model(x).argmax(1)[0]  # (16, 16)
    picture: list[Any] = [viz.segments(found, 0.5 * x[0].expand(3, -1, -1), background=10, alpha=0.7)]
    captions = ["what it takes each pixel for"]
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    with explainer.forward(x) as record:
        for side, columns in (("left", slice(0, 8)), ("right", slice(8, 16))):
            corner = found[:8, columns]
            label = int(corner[corner < 10].mode().values)  # What most of its ink is taken for.
            mask = torch.zeros(16, 16, dtype=torch.bool)
            mask[:8, columns] = corner == label
            picture.append(record.relevance(label, at=mask)[0, 0])
            captions.append(f"for the {label} at the top {side}")
    return viz.grid([picture], images=[x[0]], column_labels=captions, scale="cell", cell=150)


def a_signal() -> Any:
    """A network that looks for a fast beat among slow ones, and where it finds it."""
    torch.manual_seed(0)
    time = torch.linspace(0, 4, 200)

    def batch(count: int = 32) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (count,))
        middle = 0.6 + 2.8 * torch.rand(count, 1)
        burst = torch.exp(-(((time - middle) / 0.15) ** 2)) * torch.sin(40 * time) * labels.unsqueeze(1)
        slow = torch.sin(2 * torch.pi * (time * (0.5 + torch.rand(count, 1)) + torch.rand(count, 1)))
        return (slow + burst + 0.05 * torch.randn(count, 200)).unsqueeze(1), labels

    model = nn.Sequential(
        nn.Conv1d(1, 12, 9, padding=4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 16, 9, padding=4), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    train(model, batch, STEPS)
    x, labels = batch()
    chosen = int(labels.argmax())
    relevance = fastlrp.explain(model, x[chosen : chosen + 1], {1: 1.0, 0: -1.0}, "gamma")[0, 0]
    return viz.curve(x[chosen], relevance, times=time, xlabel="seconds", title="a fast beat rather than none")


def a_table() -> Any:
    """A row of a table: which measurements make this tumour benign rather than malignant."""
    from sklearn.datasets import load_breast_cancer

    torch.manual_seed(0)
    bunch = load_breast_cancer()
    raw, labels = torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)
    table = (raw - raw.mean(0)) / raw.std(0)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(450, (64,))
        return table[chosen], labels[chosen]

    model = train(
        nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)), batch, STEPS
    )
    contrast = {1: 1.0, 0: -1.0}
    row = 450 + int(labels[450:].argmax())  # The first benign one that it has not seen.
    relevance = fastlrp.explain(model, table[row : row + 1], contrast, "epsilon")[0, 0]
    return viz.bars(relevance, list(bunch.feature_names), values=raw[row], most=8, title="benign rather than malignant")


@cache
def sentence() -> tuple[list[str], dict[str, Tensor], Tensor]:
    """A sentence, its relevance layer by layer, and its scores, of the reader of ``examples/text.py``."""
    import text

    model, _ = text.train()
    words = ["we", "saw", "this", "not", "great", "film", "then"]
    ids = text.ids_of([words])[:, : len(words)]
    explainer = fastlrp.Explainer(model, "attnlrp")
    with explainer.forward(ids) as record:
        return words, record.relevance("all", layers=["encoder.layers.0", "encoder.layers.1"]), record.scores


def a_text() -> Any:
    """A small transformer has read this sentence. Red speaks for a class, blue against it."""
    words, layers, scores = sentence()
    return viz.text(words, layers["input"], targets=["negative", "positive"], scores=scores).figure()


def a_text_layer_by_layer() -> Any:
    """The same relevance at the hidden states of each layer, the output on top."""
    words, layers, _ = sentence()
    return viz.token_layers(layers, words, targets=["negative", "positive"])


PICTURES = (
    samples_by_classes, one_digit_under_eight_composites, from_layer_to_layer, over_the_picture, of_patches,
    segmentation, a_signal, a_table, a_text, a_text_layer_by_layer,
)  # fmt: skip
"""In the order of the gallery."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of the gallery.")
    parser.add_argument("--out", type=Path, default=Path("out/gallery"), help="folder (%(default)s)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        print(viz.save(draw(), out / f"{draw.__name__}.png"))


if __name__ == "__main__":
    main()
