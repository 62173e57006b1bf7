"""A transformer that reads opinions, and which words it goes by.

Sentences follow a known rule: one word of praise or of blame among others, turned round by a "not" before it. A small
encoder learns that in a few seconds. Its relevance must then be where the rule is: at the words that decide, with their
sign.

    python examples/text.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import viz

GOOD = ["good", "great", "lovely", "clever", "moving"]
BAD = ["bad", "dull", "awful", "silly", "boring"]
OTHERS = [
    "the", "a", "this", "film", "plot", "cast", "music", "ending", "first", "last", "long", "short", "with", "of",
    "about", "people", "really", "then", "it", "we", "saw",
]  # fmt: skip
WORDS = ["<pad>", "not", *GOOD, *BAD, *OTHERS]
DECAY = 0.3
LENGTH, WIDTH, LAYERS, CLASSES = 10, 32, 2, ["negative", "positive"]


class Reader(nn.Module):
    """From word ids ``(B, S)`` to scores ``(B, 2)``; ``<pad>`` is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(len(WORDS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        read = (ids != 0).unsqueeze(-1).to(hidden.dtype)
        hidden = self.encoder(hidden, src_key_padding_mask=ids == 0) * read
        scores: Tensor = self.head(hidden.sum(1) / read.sum(1))
        return scores


def sentences(count: int, generator: torch.Generator) -> tuple[list[list[str]], Tensor]:
    """Sentences with one opinion among other words, and whether it is positive."""

    def pick(words: list[str], number: int = 1) -> list[str]:
        return [words[i] for i in torch.randint(len(words), (number,), generator=generator).tolist()]

    texts, labels = [], []
    for _ in range(count):
        positive, denied = torch.randint(2, (2,), generator=generator).tolist()
        before, behind = torch.randint(5, (2,), generator=generator).tolist()
        opinion = [*(["not"] if denied else []), *pick(GOOD if positive else BAD)]
        texts.append([*pick(OTHERS, before), *opinion, *pick(OTHERS, behind)])
        labels.append(positive ^ denied)
    return texts, torch.tensor(labels)


def ids_of(texts: list[list[str]]) -> Tensor:
    """``(B, LENGTH)``, filled up with padding."""
    return torch.tensor([[WORDS.index(w) for w in text] + [0] * (LENGTH - len(text)) for text in texts])


def train(seed: int = 0, steps: int = 250) -> tuple[Reader, float]:
    """A reader, and its accuracy on sentences that it has not seen."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=DECAY)
    for _ in range(steps):
        texts, labels = sentences(64, generator)
        loss = nn.functional.cross_entropy(model(ids_of(texts)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    texts, labels = sentences(500, generator)
    with torch.no_grad():
        return model, float((model(ids_of(texts)).argmax(1) == labels).float().mean())


def deciding(text: list[str]) -> list[int]:
    """Places of the words that the rule goes by: the opinion and its "not"."""
    return [i for i, word in enumerate(text) if word in ("not", *GOOD, *BAD)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the page and the picture")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model, accuracy = train()
    print(f"accuracy on new sentences: {100 * accuracy:.1f} %")
    given = (
        "a lovely film with music",
        "we saw this not great film then",
        "ending of it not dull",
        "a long boring plot",
    )
    texts = [text.split() for text in given]
    ids = ids_of(texts)
    explainer = fastlrp.Explainer(model, "attnlrp")
    layers = [f"encoder.layers.{i}" for i in range(LAYERS)]
    with explainer.forward(ids) as record:
        found = record.relevance("all", layers=layers)
        contrast = record.relevance({1: 1.0, 0: -1.0})  # What the difference of the two scores is made of.
        scores = record.scores
    print(str(explainer.verify(ids, "all")).splitlines()[-1])
    tokens = [text + ["<pad>"] * (LENGTH - len(text)) for text in texts]
    view = viz.text(tokens, contrast, targets=["positive − negative"], scores=scores[:, 1:] - scores[:, :1])
    print(view.terminal())
    view.save(out / "text.html")
    view.save(out / "text.png")
    viz.save(viz.token_layers(found, tokens[1], sample=1, targets=CLASSES), out / "text_layers.png")
    print(f"{out / 'text.html'}, {out / 'text.png'}, {out / 'text_layers.png'}")


if __name__ == "__main__":
    main()
