"""Relevance of parts of the input: which way costs what and whether the choice is right, and the same beside others.

    python -m benchmarks.directions                        # both parts, all models: under six minutes on two cores
    python -m benchmarks.directions --part choice --models vgg16,vit_b_16
    FASTLRP_LXT=FOLDER FASTLRP_AUTOLRP=FOLDER python -m benchmarks.directions --part others

``choice``: down, up and the middle on a grid of targets and groups; a way that is estimated at more than ``--cut``
times the best estimate is not run (``--cut inf`` runs all). ``others``: VGG-16 patches by all classes beside the
way down and Zennit, those of ViT-B/16 beside LXT and autoLRP, BiLRP beside a loop over features and autoLRP's own,
GPT-2's next tokens beside LXT. Outputs are compared before a time counts.
Appends a row per measurement to ``benchmarks/results/directions.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastlrp
from benchmarks import attention_models, attention_peers, models, peers
from benchmarks.machine import machine, provenance
from benchmarks.providers import Provider, UnavailableError
from fastlrp import groups

RESULTS = Path(__file__).parent / "results" / "directions.jsonl"

WAYS = ("down", "up", "middle")

AGREES = 1e-3
"""Largest relative difference (2-norm) of results that are timed: float32, and others' own stabilizers."""

SHORT = 1.0
"""Seconds below which a call is timed three times, and not twice."""

SEEN = 8
"""Targets of which others are timed, whose cost for each further one is the same."""

Row = dict[str, Any]


@dataclass
class Workload:
    """A model with its record, groups by their number, and what is asked besides targets."""

    name: str
    classes: int
    parts: dict[int, Any]
    counts: tuple[int, ...]
    make: Callable[[], tuple[fastlrp.Explainer, Any]]
    given: dict[str, Any]

    @cached_property
    def record(self) -> Any:
        explainer, x = self.make()
        return explainer.forward(x)

    def ask(self, targets: Any, parts: Any, direction: str) -> Tensor:
        found: Tensor = self.record.relevance(targets, groups=parts, direction=direction, **self.given)
        return found


def _vgg16(size: int = 224) -> Workload:
    def make() -> tuple[fastlrp.Explainer, Any]:
        model, x = models.build("vgg16", size=size)
        return fastlrp.Explainer(model, "epsilon_plus", example_inputs=x), x

    parts = {n * n: groups.patches(size // n) for n in (4, 7, 14)}
    return Workload("vgg16", 1000, parts, (1, 16, 64), make, {})


def _vit(composite: str = "attnlrp") -> Workload:
    def make() -> tuple[fastlrp.Explainer, Any]:
        work = attention_models.build("vit_b_16")
        return fastlrp.Explainer(work.model, composite, example_inputs=work.x), work.x

    parts = {4: groups.patches(112), 16: groups.patches(56)}
    return Workload("vit_b_16", 1000, parts, (4, 16, 64), make, {})


def _gpt2() -> Workload:
    def make() -> tuple[fastlrp.Explainer, Any]:
        work = attention_models.build("gpt2")
        x = {"input_ids": work.x}
        return fastlrp.Explainer(work.model, "attnlrp", example_inputs=x, output="logits"), x

    tokens = torch.arange(attention_models.TOKENS)
    parts = {count: groups.labels(tokens * count // len(tokens)) for count in (8, 32, 128)}
    return Workload("gpt2", 50257, parts, (4, 32, 128), make, {"at": attention_models.AT})


WORKLOADS = {"vgg16": _vgg16, "vit_b_16": _vit, "gpt2": _gpt2}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

clock: Callable[[], float] = time.perf_counter


def seconds(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What ``call`` gives, and the shortest of three times; a long call is made twice.

    The first call makes what later ones find made: patterns of alive neurons, packed weights, memory of its size.
    """
    best = math.inf
    for turn in range(3):
        begin = clock()
        found = call()
        best = min(best, clock() - begin)
        if best > SHORT and turn == 1:
            break
    return found, best


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def choice(work: Workload, cut: float) -> Iterator[Row]:
    """Every way over the grid; prints the choice and how far it is from the best."""
    work.ask([0], next(iter(work.parts.values())), "down")  # What a record makes once.
    for count in work.counts:
        targets = [i * work.classes // count for i in range(count)]
        for number, parts in work.parts.items():
            work.ask(targets[:1], parts, "auto")
            found: dict[str, float] = {}
            expected: Tensor | None = None
            costs, taken = _estimates(work, targets, parts)
            least = min(costs.values())
            for way in WAYS:
                if way in costs and costs[way] <= cut * least:
                    result, found[way] = seconds(partial(work.ask, targets, parts, way))
                    expected = result if expected is None else expected
                    error = difference(result, expected)
                    if not error < AGREES:
                        raise RuntimeError(f"{work.name}, K = {count}, G = {number}: {way} differs by {error:.1e}")
            excess = found[taken] / min(found.values()) - 1
            said = ", ".join(f"{way} {found[way]:.3f} s (est. {costs[way] / 1e9:.0f})" for way in found)
            print(
                f"  {work.name:9} K = {count:4}, G = {number:4}: {taken:6} +{100 * excess:3.0f} %   {said}", flush=True
            )
            yield {
                "part": "choice", "model": work.name, "targets": count, "groups": number, "taken": taken,
                "seconds": found, "estimated": costs, "excess": excess,
            }  # fmt: skip


def _estimates(work: Workload, targets: Sequence[int], parts: Any) -> tuple[dict[str, float], str]:
    """What the plan expects of each way, and the one that it takes, without going one."""
    choice = work.record.estimate(targets, groups=parts, **work.given)
    named = {"down": choice.costs.below, "up": choice.costs.up, "middle": choice.costs.middle}
    return {way: cost for way, cost in named.items() if cost is not None}, choice.direction


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
    work, seen = _vgg16(size), [i * 1000 // 32 for i in range(32)]
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
    work, seen = _vit("cp_lrp"), [i * 1000 // 32 for i in range(32)]
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
    work, seen = _gpt2(), [i * 50257 // 32 for i in range(32)]
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("choice", "others", "both"), default="both")
    parser.add_argument("--models", default=",".join(WORKLOADS), help="of the first part, with commas")
    parser.add_argument("--others", default=",".join(OTHERS), help="comparisons of the second part, with commas")
    parser.add_argument("--size", type=int, default=224, help="side of the images of the second part")
    parser.add_argument("--cut", type=float, default=3.0, help="how many times the best estimate is still run")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of one thread on a machine that is shared"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default=str(RESULTS), help="file to append rows to; '' for none")
    chosen = parser.parse_args(given)
    global clock
    clock = CLOCKS[chosen.clock]
    torch.set_num_threads(1 if chosen.clock == "cpu" else chosen.threads)
    made, rows = provenance(" ".join(["python -m benchmarks.directions", *given])), []
    if chosen.part != "others":
        print(f"The choice, {machine()}; seconds of each way (estimate in GFLOP)", flush=True)
        for name in filter(None, chosen.models.split(",")):
            rows += list(choice(WORKLOADS[name](), chosen.cut))
        worst = max(row["excess"] for row in rows)
        within = sum(row["excess"] <= 0.15 for row in rows)
        print(f"  within 15 % of the best: {within} of {len(rows)}, at worst {100 * worst:.0f} %", flush=True)
    if chosen.part != "choice":
        for name in filter(None, chosen.others.split(",")):
            rows += list(OTHERS[name](chosen.size))
    if chosen.output:
        Path(chosen.output).parent.mkdir(parents=True, exist_ok=True)
        with open(chosen.output, "a") as file:
            file.writelines(json.dumps({**made, **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
