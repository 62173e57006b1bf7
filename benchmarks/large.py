"""A Llama-shaped model of 1.1 billion random bfloat16 parameters: time and resident memory of eight explanations.

Every provider runs in a process of its own, so that its peak is that of the whole process, model and libraries
included. ``lxt`` takes part where LXT can be imported: it changes the modules of ``transformers``, and explains one
target after the other or all in a batch of copies. ``gradient`` is plain autograd, one backward pass per target.

    python -m benchmarks.large --providers fastlrp,gradient,lxt
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import resident
from tests.torchvision_models import import_models

SIZES = {
    "1b": {"num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16},
    "small": {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8},
}


def build(size: str) -> tuple[Any, Any]:
    """The module of ``transformers`` and a model with random weights, the embeddings tied."""
    import_models()
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    config = LlamaConfig(**SIZES[size], num_key_value_heads=4, vocab_size=32_000, tie_word_embeddings=True)
    return modeling_llama, config


def model_of(modeling: Any, config: Any) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = modeling.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False)


def inputs_of(length: int, count: int) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 32_000, (1, length), generator=generator)
    return ids, torch.randint(0, 32_000, (count,), generator=generator).tolist()


def fastlrp_way(size: str, length: int, count: int, seconds: dict[str, float]) -> tuple[Tensor, int]:
    import fastlrp

    model = model_of(*build(size))
    ids, targets = inputs_of(length, count)
    explainer = fastlrp.Explainer(model, "attnlrp", output="logits")
    with _timed(seconds, "capture and first forward pass"):
        explainer.forward({"input_ids": ids}).close()
    for name in ("first", "again"):
        with _timed(seconds, f"forward pass, {name}"):
            record = explainer.forward({"input_ids": ids})
        with _timed(seconds, f"relevance, {name}"):
            found = record.relevance(targets, at=-1)["input_ids"]
        seconds["record, MB"] = record.cached_bytes / 2**20
        record.close()
    return found[0].float(), sum(p.numel() for p in model.parameters())


def autograd_way(size: str, length: int, count: int, seconds: dict[str, float], patched: bool) -> tuple[Tensor, int]:
    modeling, config = build(size)
    if patched:
        from lxt.efficient import monkey_patch

        monkey_patch(modeling)
    model = model_of(modeling, config)
    ids, targets = inputs_of(length, count)
    for name in ("first", "again"):
        with _timed(seconds, f"forward pass, {name}"):
            point = model.get_input_embeddings()(ids).detach().requires_grad_()
            scores = model(inputs_embeds=point, use_cache=False).logits[0, -1]
        with _timed(seconds, f"relevance, {name}"):
            rows = [torch.autograd.grad(scores[t], point, retain_graph=True)[0] for t in targets]
            found = torch.cat([(point * row).float().sum(-1) for row in rows])
        del scores
    return found.detach(), sum(p.numel() for p in model.parameters())


class _timed:  # noqa: N801
    """Notes the seconds that a block takes."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start


def _peak() -> int:
    """Bytes that the process had in memory at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resident() or 0


def measure(provider: str, arguments: argparse.Namespace, path: str) -> None:
    """In a process of its own: writes what was found to ``path``."""
    torch.set_num_threads(arguments.threads)
    seconds: dict[str, float] = {}
    shape = arguments.size, arguments.length, arguments.targets
    if provider == "fastlrp":
        found, count = fastlrp_way(*shape, seconds)
    else:
        found, count = autograd_way(*shape, seconds, patched=provider == "lxt")
    row = {"provider": provider, "parameters": count, "seconds": seconds, "peak_bytes": _peak()}
    torch.save({"row": row, "relevance": found}, path)


def agreement(ours: Tensor, theirs: Tensor) -> str:
    """Of bfloat16 results: the 2-norm of the difference, relative, and how alike the tokens are ranked."""
    error = float((ours - theirs).norm() / theirs.norm())
    ranks = [t.argsort(1).argsort(1).float() for t in (ours, theirs)]
    ranks = [r - r.mean(1, keepdim=True) for r in ranks]
    alike = float(((ranks[0] * ranks[1]).sum(1) / (ranks[0].norm(dim=1) * ranks[1].norm(dim=1))).mean())
    return f"relative difference {error:.2g}, rank correlation {alike:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--providers", default="fastlrp,gradient", help="with commas: fastlrp, gradient, lxt")
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--length", type=int, default=256, help="tokens")
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        measure(arguments.providers, arguments, arguments.alone)
        return
    first = None
    for provider in arguments.providers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "found.pt")
            command = [sys.executable, "-m", "benchmarks.large", *sys.argv[1:], "--providers", provider]
            subprocess.run([*command, "--alone", path], check=True)
            found = torch.load(path)
        print(json.dumps(found["row"]))
        if first is None:
            first = found["relevance"]
        elif provider == "lxt":
            print(f"fastlrp beside {provider}: {agreement(first, found['relevance'])}")


if __name__ == "__main__":
    main()
