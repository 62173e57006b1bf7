"""Relevance of parts of the input beside the way down and beside other software; see :mod:`benchmarks.directions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import fastlrp
from benchmarks import attention_models, attention_peers, models, peers
from benchmarks.directions_workloads import AGREES, Row, Workload, clock, difference, gpt2, seconds, vgg16, vit
from benchmarks.machine import machine
from benchmarks.providers import Provider, UnavailableError
from fastlrp import groups

SEEN = 8
"""Targets of which others are timed, whose cost for each further one is the same."""


def line(name: str, per: float, ours: float | None, error: float | None, what: str) -> str:
    """One line of a comparison: seconds per target or feature."""
    ratio = "" if ours is None else f"  {per / ours:8.1f} times fastlrp's time"
    checked = "" if error is None else f"  differs by {error:.0e}"
    return f"  {name:26} {per * 1e3:10.5f} ms per {what}{ratio}{checked}"


def compared(title: str, what: str, ways: Sequence[tuple[str, Callable[[], tuple[Tensor, float]]]]) -> Iterator[Row]:
    """Each way's ``(result of the first targets, seconds per target)``; the first is ours."""
    print(f"\n{title}", flush=True)
    expected: Tensor | None = None
    ours: float | None = None
    for name, run in ways:
        try:
            result, per = run()
        except UnavailableError as reason:
            print(f"  {name:26} left out: {reason}", flush=True)
            continue
        error = None if expected is None else difference(result, expected[:, : result.shape[1]])
        if error is not None and not error < AGREES:
            print(f"  {name:26} not timed: its output differs by {error:.1e}", flush=True)
            continue
        print(line(name, per, ours, error, what), flush=True)
        yield {"part": "others", "title": title, "provider": name, "seconds_per": per, "per": what, "error": error}
        expected, ours = (result, per) if expected is None else (expected, ours)


def _all_at_once(work: Workload, parts: Any, seen: Sequence[int]) -> Callable[[], tuple[Tensor, float]]:
    def run() -> tuple[Tensor, float]:
        work.ask([0], parts, "down")
        found, spent = seconds(lambda: work.ask("all", parts, "auto"))
        return found[:, list(seen)], spent / work.classes

    return run


def _downward(work: Workload, parts: Any, seen: Sequence[int]) -> Callable[[], tuple[Tensor, float]]:
    def run() -> tuple[Tensor, float]:
        found, spent = seconds(lambda: work.ask(list(seen), parts, "down"))
        return found[:, :SEEN], spent / len(seen)

    return run


def _provider(part: Provider, x: Tensor, seen: Sequence[int], summed: Callable[[Tensor], Tensor]) -> Any:
    def run() -> tuple[Tensor, float]:
        lap: list[float] = []
        classes = torch.tensor([list(seen)[: min(SEEN, part.limit or SEEN)]])
        begin = clock()
        found = part.run(x, classes, lambda: lap.append(clock()))
        end = clock()
        assert found is not None
        return summed(found), (end - (lap[0] if lap else begin)) / classes.shape[1]

    return run


def _unavailable(reason: UnavailableError) -> Callable[[], tuple[Tensor, float]]:
    def run() -> tuple[Tensor, float]:
        raise reason

    return run


def vgg_patches(size: int) -> Iterator[Row]:
    """Patches of 16 x 16 by 1,000 classes."""
    work, seen = vgg16(size), [i * 1000 // 32 for i in range(32)]
    parts, number = groups.patches(16), (size // 16) ** 2
    ways: list[tuple[str, Any]] = [
        ("fastlrp all classes", _all_at_once(work, parts, seen)),
        ("fastlrp down, 32 at once", _downward(work, parts, seen)),
    ]
    model, x = models.build("vgg16", size=size)
    try:
        others = peers.zennit(model, "epsilon_plus", "vgg", 4)
        ways += [(part.name, _provider(part, x, seen, lambda R: _of_patches(R, 16))) for part in others]
    except UnavailableError as reason:
        ways.append(("zennit", _unavailable(reason)))
    return compared(f"VGG-16, {number} patches x 1,000 classes, epsilon_plus, {machine()}", "class", ways)


def vit_patches(size: int) -> Iterator[Row]:
    """ViT-B/16: its 196 patches by 1,000 classes. Zennit has no rules for attention; LXT and autoLRP have."""
    work, seen = vit("cp_lrp"), [i * 1000 // 32 for i in range(32)]
    parts = groups.patches(16)
    ways: list[tuple[str, Any]] = [
        ("fastlrp all classes", _all_at_once(work, parts, seen)),
        ("fastlrp down, 32 at once", _downward(work, parts, seen)),
    ]
    other = attention_models.build("vit_b_16")
    for name, make in (("lxt", attention_peers.lxt), ("autolrp", attention_peers.autolrp)):
        try:
            ways += [(p.name, _provider(p, other.x, seen, lambda R: _of_patches(R, 16))) for p in make(other, "cp_lrp")]
        except UnavailableError as reason:
            ways.append((name, _unavailable(reason)))
    return compared(f"ViT-B/16, 196 patches x 1,000 classes, cp_lrp, {machine()}", "class", ways)


def bilrp(size: int) -> Iterator[Row]:
    """Similarity of two images by VGG-16's 512 pooled features, for patches of 32 x 32."""
    model, _ = models.build("vgg16")
    # The mean of each channel as a dense layer, which every library shares relevance at in the same way.
    mean, positions = torch.eye(512).repeat_interleave((size // 32) ** 2, 1), (size // 32) ** 2
    pooled = torch.nn.Linear(512 * positions, 512, bias=False)
    pooled.weight.data = mean / positions
    features = torch.nn.Sequential(model.features, torch.nn.Flatten(), pooled).eval()
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(1, 3, size, size, generator=generator) for _ in range(2))
    parts, few = groups.patches(32), list(range(0, 512, 64))
    explainer = fastlrp.Explainer(features, "gamma", example_inputs=a)

    def at_once() -> tuple[Tensor, float]:
        fastlrp.similarity(explainer, a, b, parts)
        _, spent = seconds(lambda: fastlrp.similarity(explainer, a, b, parts))
        first, second = (explainer(x, few, groups=parts) for x in (a, b))
        return first.transpose(1, 2) @ second, spent / 512

    def looped() -> tuple[Tensor, float]:
        begin = clock()
        pairs = torch.zeros(())
        for m in few:
            first, second = (explainer(x, m, groups=parts, direction="down") for x in (a, b))
            pairs = pairs + first.transpose(1, 2) @ second
        return pairs, (clock() - begin) / len(few)

    def autolrp() -> tuple[Tensor, float]:
        library = attention_peers.library("autolrp", "FASTLRP_AUTOLRP")
        rule = ("gamma", {"gamma": 0.25})
        weighted = ("ConvolutionBackward", "AddmmBackward", "MmBackward")
        config = library.LRPConfig(rule={**library.BASE, **library.on(weighted, rule)}, eps=peers.EPSILON)
        begin = clock()
        pairs = library.bilrp(
            features, a, b, config=config,
            project=lambda out: out[:, few],
            reduce_each=lambda R: _of_patches(R.as_subclass(Tensor).unsqueeze(1), 32)[:, 0],
        )  # fmt: skip
        return pairs.unsqueeze(0), (clock() - begin) / len(few)

    ways = [("fastlrp similarity", at_once), ("loop over features", looped), ("autolrp.bilrp", autolrp)]
    return compared(
        f"BiLRP, VGG-16, 512 features, images of {size} x {size}, patches of 32 x 32, gamma, {machine()}",
        "feature",
        ways,
    )


def _of_patches(R: Tensor, size: int) -> Tensor:
    """``(B, K, C, H, W)`` summed over squares of that size, ``(B, K, G)``."""
    tiles = R.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # (B, K, C, h, size, w, size)
    return tiles.sum((2, 4, 6)).flatten(2)


def next_tokens(size: int) -> Iterator[Row]:
    """128 tokens by all 50,257 next tokens."""
    work, seen = gpt2(), [i * 50257 // 32 for i in range(32)]
    ways: list[tuple[str, Any]] = [
        ("fastlrp all tokens", _all_at_once(work, "tokens", seen)),
        ("fastlrp down, 32 at once", _downward(work, "tokens", seen)),
    ]
    other = attention_models.build("gpt2")
    try:
        ways += [(p.name, _provider(p, other.x, seen, lambda R: R)) for p in attention_peers.lxt(other, "attnlrp")]
    except UnavailableError as reason:
        ways.append(("lxt", _unavailable(reason)))
    return compared(f"GPT-2 small, 128 tokens, all 50,257 targets of the last position, {machine()}", "target", ways)


def every_position(size: int) -> Iterator[Row]:
    """128 tokens by all 50,257 next tokens of all positions, in blocks of tokens within 2 GB."""
    work, seen = attention_models.build("gpt2"), [(p, p * 50257 // 128) for p in range(0, 128, 16)]
    tokens, classes = attention_models.TOKENS, 50257
    x = {"input_ids": work.x}
    explainer = fastlrp.Explainer(work.model, "attnlrp", example_inputs=x, output="logits", max_memory="2GB")
    columns = [position * classes + number for position, number in seen]

    def at_once() -> tuple[Tensor, float]:
        with explainer.forward(x) as record:

            def streamed() -> Tensor:
                blocks = record.stream("all", at="all", groups="tokens", over="groups")
                return torch.cat([R[:, columns] for _, R in blocks], 2)

            found, spent = seconds(streamed)
        return found, spent / (tokens * classes)

    def downward() -> tuple[Tensor, float]:
        with explainer.forward(x) as record:
            found, spent = seconds(lambda: record.relevance(seen, at="pairs", groups="tokens", direction="down"))
        return found, spent / len(seen)

    ways = [("fastlrp all positions", at_once), ("fastlrp down, 8 at once", downward)]
    title = f"GPT-2 small, 128 tokens, all 50,257 targets of all positions, {machine()}"
    return compared(title, "target", ways)


OTHERS = {
    "vgg16": vgg_patches,
    "vit_b_16": vit_patches,
    "bilrp": bilrp,
    "gpt2": next_tokens,
    "gpt2-all": every_position,
}
