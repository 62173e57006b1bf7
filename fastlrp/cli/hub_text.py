"""Models of texts and their tokenizers, from a local folder of transformers. Nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.cli import hub
from fastlrp.cli.errors import Failure, InputFailure, one_line
from fastlrp.cli.first_word import FirstWord
from fastlrp.viz.pieces import as_text, as_token, marks_of

TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True)
class Tokenized:
    """One text as its model takes it.

    Attributes:
        name: for people. text: as it was given. inputs: lists of one number for each token, by the names of the model's
            arguments. tokens: as the vocabulary writes them.
    """

    name: str
    text: str
    inputs: dict[str, list[int]]
    tokens: list[str]

    @property
    def ids(self) -> list[int]:
        return self.inputs["input_ids"]


class TextReader:
    """A tokenizer beside its model.

    Attributes:
        scores: what the model scores: ``"classes"`` of a text, ``"tags"`` of each token, the next ``"words"``, those of
            tokens that are ``"masked"``, the ``"first"`` token of an answer, or the tokens themselves, as the beginning
            or end of an answer (``"spans"``).
        context: the text in which answers are looked for.
        marks: how its vocabulary marks subwords. special: its special tokens. limit: tokens that the model takes.
    """

    def __init__(self, tokenizer: Any, model: nn.Module, scores: str) -> None:
        self._tokenizer, self.scores = tokenizer, scores
        self._takes = set(signature(model.forward).parameters)
        self.vocabulary: dict[str, int] = dict(tokenizer.get_vocab())
        self._tokens = {number: token for token, number in self.vocabulary.items()}
        self.marks = marks_of(self.vocabulary)
        self.special = set(map(str, tokenizer.all_special_tokens))
        self.limit = _limit(tokenizer, model)
        self.context: str | None = None
        self.mask: int | None = getattr(tokenizer, "mask_token_id", None)
        fills = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        self._padding: int = next((fill for fill in fills if fill is not None), 0)

    def read(self, text: str, name: str) -> Tokenized:
        """A text as tokens.

        Raises:
            InputFailure: for an empty text, or one that is longer than the model takes.
        """
        if not text.strip():
            raise InputFailure(f"{name} is empty")
        try:
            both = (text,) if self.context is None else (text, self.context)
            found = self._tokenizer(*both, return_attention_mask="attention_mask" in self._takes)
        except Exception as error:  # Whatever a tokenizer raises.
            raise InputFailure(f"{name}: the tokenizer fails: {one_line(error)}") from error
        inputs = {key: list(map(int, value)) for key, value in found.items() if key in self._takes}
        ids = inputs["input_ids"]
        if not ids:
            raise InputFailure(f"{name} has no tokens")
        if self.limit is not None and len(ids) > self.limit:
            raise InputFailure(f"{name} has {len(ids)} tokens, the model takes at most {self.limit}: shorten it")
        return Tokenized(name, text, inputs, [self.token(number) for number in ids])

    def token(self, number: int) -> str:
        """As the vocabulary writes it."""
        return self._tokens.get(number, f"[{number}]")

    def name(self, number: int) -> str:
        """For people: the text that a token stands for."""
        return as_text(self.token(number), self.marks)

    def id_of(self, text: str) -> tuple[int | None, list[str]]:
        """The token that stands for a text; if there is none, the tokens that it consists of."""
        for token in (as_token(text, self.marks), text):
            if token in self.vocabulary:
                return self.vocabulary[token], []
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        known = len(ids) == 1 and ids[0] != getattr(self._tokenizer, "unk_token_id", None)
        return (int(ids[0]) if known else None), [self.name(int(number)) for number in ids]

    def batch(self, texts: Sequence[Tokenized], device: torch.device, length: int) -> dict[str, Tensor]:
        """The model's arguments for texts, filled up with padding behind them."""
        found = {}
        for key in texts[0].inputs:
            fill = self._padding if key == "input_ids" else 0
            rows = [text.inputs[key] + [fill] * (length - len(text.ids)) for text in texts]
            found[key] = torch.tensor(rows, device=device)
        return found

    @property
    def pads(self) -> bool:
        """Whether texts of different lengths can go together: the model is told what is padding."""
        return "attention_mask" in self._takes and self.scores != "spans"

    @property
    def of_positions(self) -> bool:
        """Whether scores stand at positions of the text, of which some are asked for."""
        return self.scores not in ("classes", "first", "spans")


def load(folder: Path, trust: bool) -> dict[str, Any]:
    """A model of texts with its tokenizer, from a folder that ``save_pretrained`` made.

    Args:
        trust: run Python files of the folder, and take weights in other formats than safetensors.

    Raises:
        Failure: if the folder does not hold one. ImportError: without transformers.
    """
    transformers = hub.open_folder(folder)
    name = hub.architecture(folder)
    end = next((end for end in hub.OF_TEXTS if name.endswith(end)), None)
    if end is None:
        raise Failure(
            f"hf:{folder}: its config.json names the architecture {name or 'of no class'}: --text takes classifiers of "
            f"texts and tokens and language models (…{', …'.join(hub.OF_TEXTS)})"
        )
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise Failure(
            f"hf:{folder}: there is no tokenizer in it (tokenizer.json): write it with tokenizer.save_pretrained"
        )
    auto, scores = hub.OF_TEXTS[end]
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        # Neither Python files of the folder nor what a pickle of weights may name are run.
        model, loading = getattr(transformers, auto).from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust, weights_only=True, output_loading_info=True,
            use_safetensors=None if trust else True,
        )  # fmt: skip
    except Exception as error:  # Everything from a missing file to Python that is not trusted.
        raise Failure(f"hf:{folder}: transformers cannot load {name} from it: {one_line(error)}") from error
    missing = sorted(loading.get("missing_keys", ()))
    if missing:
        raise Failure(f"hf:{folder}: the folder has no weights for {', '.join(missing[:6])}: the model is not trained")
    labels = {int(number): str(label) for number, label in (model.config.id2label or {}).items()}
    about = f"hf:{folder} ({type(model).__name__})"
    output: str | None = "start_logits" if scores == "spans" else "logits"
    if scores == "first":
        model, output = FirstWord(model), None
    found = {"module": model.eval(), "about": about, "output": output}
    of_classes = scores in ("classes", "tags")
    return {**found, "labels": labels if of_classes else None, "reader": TextReader(tokenizer, model, scores)}


def _limit(tokenizer: Any, model: nn.Module) -> int | None:
    """The longest text; RoBERTa's position table begins behind its padding index."""
    limits = [getattr(model.config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [n for n in limits if isinstance(n, int) and 0 < n < 10**9]
    return min(known) if known else None
