"""Makes the pictures of docs/pictures.md: ``python examples/pictures.py --out docs/images``.

Small networks are trained on what scikit-learn brings along, nothing is downloaded: one on its handwritten digits (8x8
pixels), one to tell pieces of its two photographs apart; a third reads a few sentences. Then every function of
``fastlrp.viz`` has something to show. Under half a minute on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import viz

PHOTOS = ("flower", "temple")
PIECE = 64
BAD = (
    "a bad film", "the story is bad", "the actors are bad", "not a good film", "the story is not good",
    "not good at all", "boring from the start", "the actors are boring", "a boring story", "i hated it",
    "good start but a boring end",
)  # fmt: skip
GOOD = (
    "a good film", "the story is good", "the actors are good", "not a bad film", "the story is not bad",
    "not bad at all", "funny from the start", "the actors are funny", "a funny story", "i liked it",
    "boring start but a good end",
)  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    """Scans ``(N, 1, 8, 8)`` in [0, 1] and their classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images).float().unsqueeze(1) / 16, torch.from_numpy(bunch.target).long()


def photographs() -> Tensor:
    """A flower and a temple ``(2, 3, 224, 336)`` in [0, 1]."""
    from sklearn.datasets import load_sample_image

    full = torch.stack([torch.tensor(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")])
    small = nn.functional.interpolate(full.movedim(3, 1).float() / 255, (224, 336), mode="area")
    return small.clamp(0, 1)


def digit_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def photo_network() -> nn.Sequential:
    """Takes pictures of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip


def train(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], steps: int, rate: float = 3e-3) -> nn.Module:
    """Adam on the cross-entropy; in evaluation mode afterwards."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        x, classes = batch()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), classes).backward()
        optimizer.step()
    return model.eval()


def pieces(photos: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Square pieces of the photographs, and which of the two each is of."""
    classes = torch.randint(2, (count,))
    tops = torch.randint(photos.shape[2] - PIECE + 1, (count,)).tolist()
    lefts = torch.randint(photos.shape[3] - PIECE + 1, (count,)).tolist()
    cut = [photos[k, :, t : t + PIECE, l : l + PIECE] for k, t, l in zip(classes, tops, lefts, strict=True)]
    return torch.stack(cut), classes


def of_digits(out: Path, steps: int) -> None:
    """Scales, colour maps, outline, samples by targets, targets by layers."""
    images, classes = digits()
    training = len(images) * 4 // 5

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(training, (64,))
        return images[chosen], classes[chosen]

    model = train(digit_network(), batch, steps)
    x = torch.stack([images[training:][classes[training:] == digit][0] for digit in (0, 3, 4, 8)])
    explainer = fastlrp.Explainer(model, fastlrp.composites.epsilon_gamma_box(low=0.0, high=1.0))
    with explainer.forward(x) as record:
        scores, relevance = record.output, record.relevance("all")
        layers = record.relevance("top3", layers=["1", "3", "6"])
    signed, level = relevance[3, 9], viz.shared_level([relevance[3, 9]])

    names = ["symmetric", "absolute", "unaligned"]
    normalized = [viz.heatmap(signed, normalize=name, zoom=24) for name in names]
    viz.save(viz.grid([normalized], images=[x[3]], column_labels=names, cell=160), out / "pictures_heatmap.png")

    names = [name for name in viz.COLORMAPS if ":" in name and not name.endswith("_r")]
    names += ["bwr", "seismic", "RdBu_r", "afmhot", "jet"]
    ramp = torch.linspace(-level, level, 8).expand(1, 1, 8)
    with_ramp = torch.cat((signed, ramp), 1)
    rows, captions = [], []
    for start in range(0, len(names), 7):
        line = names[start : start + 7]
        rows.append([viz.heatmap(with_ramp, cmap=name, zoom=12) for name in line])
        captions.append([name.replace(":", ":\n") for name in line] + [""] * (7 - len(line)))
    viz.save(viz.grid(rows, titles=captions, cell=104), out / "pictures_colormaps.png")

    kinds = {
        "outline alone": viz.outline(x[0], zoom=24),
        "over the heatmap": viz.outline(x[0], relevance[0, 0], zoom=24),
        "as the Toolbox draws": viz.outline(x[0], relevance[0, 0], zoom=24, cmap="jet"),
    }
    viz.save(viz.grid([list(kinds.values())], column_labels=list(kinds), cell=160), out / "pictures_outline.png")

    figure = viz.grid(
        relevance,
        images=x,
        titles=scores,
        row_labels=[f"is a {digit}" for digit in (0, 3, 4, 8)],
        column_labels=[f"for {k}" for k in range(10)],
        title="Which pixels speak for and against each class? Below: its score",
        quantile=0.995,
        cell=72,
    )
    viz.save(figure, out / "pictures_grid.png")

    best = scores[3].topk(3)
    figure = viz.grid(
        layers,
        sample=3,
        images=x[3],
        row_labels=[f"{k}: {score:+.1f}" for score, k in zip(best.values, best.indices, strict=True)],
        title="The three best classes of one digit, layer by layer",
        cell=104,
    )
    viz.save(figure, out / "pictures_layers.png")


def of_photographs(out: Path, steps: int) -> None:
    """Overlays on a collage of both photographs."""
    photos = photographs()
    torch.manual_seed(0)
    model = train(photo_network(), lambda: pieces(photos, 32), steps)
    left, right = photos[0, :, :, 90:258], photos[1, :, :, 40:208]
    collage = torch.cat((left, right), 2)
    composite = fastlrp.composites.epsilon_gamma_box(low=0.0, high=1.0)
    relevance = fastlrp.explain(model, collage[None], "all", composite)[0]
    level = viz.shared_level(list(relevance), quantile=0.99)
    rows = [
        [
            viz.heatmap(relevance[k], level=level),
            viz.overlay(relevance[k], collage, level=level, grey=True),
            viz.overlay(relevance[k], collage, level=level, grey=True, alpha="relevance"),
        ]
        for k in range(2)
    ]
    figure = viz.grid(
        rows,
        images=[collage, None],
        row_labels=[f"for {name}" for name in PHOTOS],
        column_labels=["heatmap", "overlay, alpha=0.5", 'overlay, alpha="relevance"'],
        cell=224,
    )
    viz.save(figure, out / "pictures_overlay.png")


class Words(nn.Module):
    """Which of two opinions, from embeddings ``(B, T, 16)``: three neighbouring words at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(16, 32, 3, padding=1), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.transpose(1, 2)).relu().mean(2))


def of_text(steps: int) -> None:
    """Prints relevance per word of a sentence that is not among those learned."""
    sentences = [line.split() for line in (*BAD, *GOOD)]
    classes = torch.tensor([0] * len(BAD) + [1] * len(GOOD))
    words = ["", *sorted({word for sentence in sentences for word in sentence})]
    length = max(len(sentence) for sentence in sentences)

    def indices(sentence: list[str]) -> list[int]:
        return [words.index(word) for word in sentence] + [0] * (length - len(sentence))

    ids = torch.tensor([indices(sentence) for sentence in sentences])
    embedding, reader = nn.Embedding(len(words), 16, padding_idx=0), Words()
    train(nn.Sequential(embedding, reader), lambda: (ids, classes), steps, rate=1e-2)
    tokens = ["the", "story", "is", "not", "bad", "but", "the", "actors", "are", "boring"]
    x = embedding(torch.tensor([[words.index(word) for word in tokens]])).detach()
    relevance = fastlrp.explain(reader, x, "all", "epsilon")[0]
    level = float(relevance.sum(2).abs().max())
    for name, of_class in zip(("bad", "good"), relevance, strict=True):
        print(f"for {name:<6}{viz.text_terminal(tokens, of_class, level=level)}")


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description="Make the pictures of docs/pictures.md.")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"), help="folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of training, of each network (%(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    of_digits(options.out, options.steps)
    of_photographs(options.out, options.steps)
    of_text(options.steps)
    made = sorted(path.name for path in options.out.glob("pictures_*.png"))
    print(f"{options.out}: {', '.join(made)}\n{time.perf_counter() - start:.1f} seconds")


if __name__ == "__main__":
    main()
