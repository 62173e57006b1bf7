"""Attention, norms and recurrent layers of models of texts, beside the same composed of PyTorch calls and a gradient.

    python -m benchmarks.gpu.transformer --output rows.jsonl --ops attention --targets 1,32

Results first, as in ``benchmarks.gpu.ops``. Beside attention's way down stands PyTorch's own backward pass of the same
attention (flash attention where PyTorch has it), for as many targets at once as a batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import precisions
from benchmarks.gpu import calls, ops, roofline
from benchmarks.gpu.ops import Question
from benchmarks.gpu.part import Part, begin, listed, numbers, parser
from benchmarks.gpu.timing import Timer, in_turns
from benchmarks.shapes import Call
from fastlrp.backends import dispatch
from fastlrp.tune import attention

CPU = torch.device("cpu")
DOWN = "attention_relevance"
GROUPS = 32
"""That go up at once: all of a call's, which has no targets beside them."""

NORMS = (("GPT-2", 1024, 768, True), ("Llama 3 8B", 512, 4096, False))
"""Name, positions, features, whether the mean is taken off."""


def attention_calls(tiny: bool) -> Iterator[Call]:
    """Every shape that attention is tuned on."""
    for work in attention.standard(targets=(1,)):
        small = work if not tiny else attention.Attention(work.op, 4, 4, (5, 5), heads=2, causal=True)
        assert isinstance(small, attention.Attention)
        sharing = f" sharing {small.sharing}" if small.sharing > 1 else ""
        shape = f"{small.heads} heads of {small.inputs}{sharing}, {small.size[0]}{' causal' if small.causal else ''}"
        if work.op == attention.UP:
            small, shape = replace(small, targets=3 if tiny else GROUPS), f"{shape}, groups going up"
        given = small.arguments(CPU, torch.float32)
        if work.op in (attention.WITHOUT_TARGETS, attention.UP):
            yield Call(work.op, shape, None, given)
        else:
            yield Call(work.op, shape, (tuple(given[0].shape), (3, 2, 4)), given[1:])
        if tiny and work.op == attention.UP:
            return


def norm_calls(tiny: bool) -> Iterator[Call]:
    """A layer norm and an RMS norm."""
    for name, L, N, centre in NORMS:
        L, N = (5, 8) if tiny else (L, N)
        yield Call("norm_relevance", name, ((1, 1, L, N), (2, 3)), (torch.randn(N), torch.rand(1, L, 1) + 0.5, centre))


def recurrence_calls(tiny: bool) -> Iterator[Call]:
    """All steps of an LSTM whose gates get nothing."""
    T, H = (5, 8) if tiny else (200, 256)
    vector = torch.rand(1, T, H)
    weights = torch.randn(H, H) / H**0.5, torch.randn(H, H) / H**0.5
    rest = (None, weights[0], vector, vector, vector, vector.unsqueeze(2), *[None] * 4, weights[1], None)
    yield Call("recurrence_relevance", f"LSTM of {H}, {T} steps", ((1, 1, T, H), (2, 3)), rest)


CALLS = {"attention": attention_calls, "norm": norm_calls, "recurrence": recurrence_calls}


def gradient(given: tuple[Any, ...], backend: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """The way down through attention, and PyTorch's backward pass of it with the targets as a batch."""
    relevance, query, key, value, *_ = given
    causal, scale = given[7], given[8]
    K, shared = relevance.shape[1], query.shape[1] // key.shape[1]
    assert query.shape[0] == 1
    each = [t.repeat_interleave(n, 1) for t, n in ((query, 1), (key, shared), (value, shared))]
    leaves = [t.expand(K, *t.shape[1:]).contiguous().requires_grad_() for t in each]
    with torch.enable_grad():
        output = F.scaled_dot_product_attention(*leaves, is_causal=causal, scale=scale)
    flow = relevance[0].contiguous()
    return {
        "relevance": lambda: backend(*given),
        "gradient": lambda: torch.autograd.grad(output, leaves, flow, retain_graph=True),
    }


def beside_the_gradient(part: Part, asked: Question, backends: Sequence[str], timer: Timer) -> None:
    """Both times of each backend, in turns; a backend whose results are not right has been named before."""
    for backend in backends:
        try:
            call = asked.bound(backend)
        except (dispatch.BackendError, ValueError):
            continue
        with precisions.using(asked.precision):
            block = calls.arguments(asked.call, asked.targets, asked.device, asked.dtype)
            runs = gradient(block, call)
            with torch.no_grad():
                for run in runs.values():
                    run()
                taken = in_turns(runs, timer)
        seconds, other = taken["relevance"].median, taken["gradient"].median
        part.write(
            [
                {
                    "what": "gradient", "op": asked.call.op, "model": asked.call.model, "call": str(asked.call),
                    "targets": asked.targets, "precision": asked.precision, "backend": backend,
                    "gradient_seconds": other, "relevance_seconds": seconds, "times_faster_than_gradient":
                    other / seconds,
                }
            ]
        )  # fmt: skip
        part.say(f"  {backend:28} {seconds * 1e3:9.3f} ms, PyTorch's backward pass {other * 1e3:9.3f} ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = parser(__doc__)
    add = words.add_argument
    add("--ops", type=listed, default=tuple(CALLS), help="attention, norm, recurrence")
    add("--backends", type=listed, default=("triton", "cuda"))
    add("--precisions", type=listed, default=("float32", "tf32", "bfloat16", "float16"))
    add("--targets", type=numbers, default=(1, 32))
    options = words.parse_args(given)
    part = begin("transformer", options, given)
    found = [call for name in options.ops for call in CALLS[name](options.tiny)]
    questions = [
        Question(call, targets, name, part.device)
        for name in options.precisions
        for targets in options.targets
        for call in found
        if not (call.relevance is None and targets != options.targets[0])
    ]
    timer = Timer(part.device)
    peaks = roofline.measure(part.device, options.precisions, timer, options.tiny)
    code = ops.measured(part, questions, options.backends, peaks, timer)
    for asked in questions:
        if asked.call.op == DOWN and not part.is_lost() and not part.is_late(f"the gradient beside {asked}"):
            part.say(f"{asked}, beside a gradient")
            beside_the_gradient(part, asked, options.backends, timer)
    return part.code() or code


if __name__ == "__main__":
    raise SystemExit(main())
