"""What is measured: each scenario yields rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from benchmarks import (
    attention_floor,
    attention_models,
    attention_peers,
    density,
    gates,
    peers,
    precisions,
    providers,
)
from benchmarks.measure import Case
from benchmarks.models import build
from benchmarks.precisions import PRECISIONS
from benchmarks.providers import Provider, UnavailableError
from benchmarks.rounds import OTHERS, Options, Round, spread_out
from benchmarks.toolbox_rounds import lrp_toolbox, sweep

PRESETS = ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1")


@dataclass(frozen=True)
class _Loaded:
    """A model with its input, and what the case says about both; ``exact``: both in float32."""

    name: str
    model: nn.Module
    x: Tensor
    share: density.Density
    scores: Tensor
    exact: tuple[nn.Module, Tensor]

    @property
    def size(self) -> int:
        return self.x.shape[-1]


@lru_cache(maxsize=1)
def _exact(
    name: str, size: int, batch: int, device: str, asked: float | None
) -> tuple[nn.Module, Tensor, density.Density, Tensor]:
    """A model in float32 with its input, its densities and scores; the latest is kept for the next precision."""
    model, x = build(name, size=size, batch=batch, device=device)
    if asked is not None:
        density.shift(model, x, asked)
    with torch.no_grad():
        scores = model(x).cpu()
    return model, x, density.measure(model, x), scores


def _loaded(options: Options, names: tuple[str, ...], batch: int) -> Iterator[_Loaded]:
    for name in options.models or names:
        with precisions.using("float32"):
            model, x, share, scores = _exact(name, options.size, batch, options.device, options.density)
        dtype = PRECISIONS[options.precision].dtype
        own = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        yield _Loaded(name, own, x.to(dtype), share, scores, (model, x))


def _beside(options: Options, loaded: _Loaded, rule: str, classes: Tensor) -> tuple[list[Provider], list[str]]:
    """Everybody but fastlrp, and why some are missing."""
    makers: dict[str, Callable[[], list[Provider]]] = {
        "gradient": lambda: _gradients(options, loaded),
        "floor": lambda: [providers.floor(loaded.model, loaded.x, classes.shape[1] if options.gpu else 32)],
        "zennit": lambda: _zennit(options, loaded, rule, classes, left_out),
        "captum": lambda: peers.captum(loaded.model, rule, options.peer_targets),
    }
    parts: list[Provider] = []
    left_out: list[str] = []
    for name in options.others:
        try:
            parts += makers[name]()
        except UnavailableError as reason:
            left_out.append(f"  {name:18} left out: {reason}")
    return parts, left_out


def _gradients(options: Options, loaded: _Loaded) -> list[Provider]:
    """On a GPU the batched ways get enough targets to fill it."""
    return providers.gradients(loaded.model, 32, 64) if options.gpu else providers.gradients(loaded.model)


def _zennit(options: Options, loaded: _Loaded, rule: str, classes: Tensor, notes: list[str]) -> list[Provider]:
    """Both of Zennit's ways. On a GPU the expanded batch has the size that is fastest."""
    family, limit = "resnet" if "resnet" in loaded.name else "vgg", options.peer_targets
    if not options.gpu:
        return peers.zennit(loaded.model, rule, family, limit)

    def expanded(size: int) -> Provider:
        return peers.zennit(loaded.model, rule, family, limit, size)[1]

    size, lines = peers.best_batch(expanded, loaded.x, classes)
    notes += [f"  {'zennit expanded':18} {line}" for line in lines]
    return peers.zennit(loaded.model, rule, family, limit, size)


def _round(
    case: Case, parts: list[Provider], loaded: _Loaded, options: Options, repeats: int, notes: list[str]
) -> Round:
    """Everybody computes in the precision asked for. On a GPU nobody's failure ends the others' measurement."""
    parts = [replace(p, dtype=options.precision, optional=p.optional or options.gpu) for p in parts]
    if options.gpu or options.precision != "float32":
        gate = gates.made(loaded.exact, (loaded.model, loaded.x), case.composite, case.classes, options.precision)
    else:
        gate = gates.in_double(loaded.model, loaded.x, case.composite, case.classes)
    return Round(case, parts, loaded.x, options.repeats or repeats, notes, gate)


def _case(scenario: str, loaded: _Loaded, rule: str, classes: Tensor, options: Options) -> Case:
    return Case(scenario, loaded.name, rule, classes, loaded.size, options.density, loaded.share)


def _rounds(
    scenario: str, options: Options, names: tuple[str, ...], presets: tuple[str, ...], batch: int, repeats: int,
    choose: Callable[[Tensor], Tensor],
    extra: Callable[[_Loaded, str, Tensor], list[Provider]] = lambda loaded, rule, classes: [],
) -> Iterator[Round]:  # fmt: skip
    """Every model under every composite, everybody beside fastlrp. ``choose``: classes from the model's scores."""
    for loaded in _loaded(options, names, batch):
        classes = choose(loaded.scores)
        for rule in options.composites or presets:
            make = partial(providers.ours, loaded.model, loaded.x, rule)
            own, missing = providers.each(options.backends, options.gpu, make)
            others, left_out = _beside(options, loaded, rule, classes)
            others += [providers.switched(part) for part in others] if options.switched else []
            case = _case(scenario, loaded, rule, classes, options)
            parts = [*own, *extra(loaded, rule, classes), *others]
            yield _round(case, parts, loaded, options, repeats, [*missing, *left_out])


def targets(options: Options) -> Iterator[Round]:
    """One image, K targets."""
    return _rounds(
        "targets", options, ("vgg16", "resnet50"), PRESETS, 1, 3,
        lambda scores: spread_out(options.targets, scores.shape[1]),
    )  # fmt: skip


def batch(options: Options) -> Iterator[Round]:
    """A batch of images, one target each: the class with the highest score."""
    names = ("vgg16", "resnet50")
    return _rounds("batch", options, names, PRESETS, options.batch, 3, lambda s: s.topk(1, dim=1).indices)


def top5(options: Options) -> Iterator[Round]:
    """A batch of images, the five highest classes of each."""
    names = ("vgg16", "resnet50")
    return _rounds("top5", options, names, PRESETS, options.batch, 3, lambda s: s.topk(5, dim=1).indices)


def small(options: Options) -> Iterator[Round]:
    """The small network, ten classes of one digit; a gradient of one class beside them."""
    return _rounds(
        "small", options, ("small",), ("epsilon_plus",), 1, 300, lambda s: spread_out(s.shape[1], s.shape[1]),
        lambda loaded, rule, classes: [providers.one_gradient(loaded.model)],
    )  # fmt: skip


def replay(options: Options) -> Iterator[Round]:
    """LeNet-5, ten classes of one digit: the launches recorded once, beside the same calls made one by one (GPU)."""

    def recorded(loaded: _Loaded, rule: str, classes: Tensor) -> list[Provider]:
        make = partial(providers.replayed, loaded.model, loaded.x, classes, rule, "auto")
        found = providers.guarded("fastlrp replayed auto", make, UnavailableError)
        return [found, providers.one_gradient(loaded.model)]

    return _rounds(
        "replay", options, ("lenet",), ("epsilon_plus",), 1, 50, lambda s: spread_out(s.shape[1], s.shape[1]), recorded
    )


def stream(options: Options) -> Iterator[Round]:
    """Many targets in blocks that are forgotten one by one: time per target and memory must not grow with K."""
    for loaded in _loaded(options, ("vgg16",), 1):
        for rule in options.composites or ("epsilon_plus",):
            make = partial(providers.streaming, loaded.model, loaded.x, rule, block=64)
            parts, missing = providers.each(options.backends, options.gpu, make)
            parts += _gradients(options, loaded) if "gradient" in options.others else []
            for count in options.counts or (1, 64, 1000):
                case = _case("stream", loaded, rule, spread_out(count, loaded.scores.shape[1]), options)
                yield _round(case, parts, loaded, options, 1, missing)


def basis(options: Options) -> Iterator[Round]:
    """More targets than some edge of the network is wide: a basis of that edge is propagated instead."""
    for loaded in _loaded(options, ("resnet18",), 1):
        for rule in options.composites or ("epsilon_plus",):
            make = partial(providers.ours, loaded.model, loaded.x, rule)
            parts, missing = providers.each(options.backends, options.gpu, make)
            parts += _gradients(options, loaded) if "gradient" in options.others else []
            parts += [providers.floor(loaded.model, loaded.x)] if "floor" in options.others else []
            for count in options.counts or (256, 1000):
                case = _case("basis", loaded, rule, spread_out(count, loaded.scores.shape[1]), options)
                yield _round(case, parts, loaded, options, 1, missing)


def transformers(options: Options) -> Iterator[Round]:
    """One text of 128 tokens, or one image: K targets under AttnLRP (ViT: CP-LRP), beside LXT and autoLRP."""
    names = options.models or tuple(attention_models.MADE)
    for name in names:
        work = attention_models.build(name)
        for rule in options.composites or (work.composite,):
            own, graph = providers.of_transformer(work, rule)
            parts, left_out = [own], []
            makers: dict[str, Callable[[], list[Provider]]] = {
                "gradient": lambda: attention_peers.gradients(work),  # noqa: B023 (called in this turn)
                "floor": lambda: [attention_floor.floor(work, graph)],  # noqa: B023
                "lxt": lambda: attention_peers.lxt(work, rule),  # noqa: B023
                "autolrp": lambda: attention_peers.autolrp(work, rule),  # noqa: B023
            }
            wanted = ("lxt", "autolrp", *options.others) if options.others == OTHERS else options.others
            for other in (word for word in wanted if word in makers):
                try:
                    parts += makers[other]()
                except UnavailableError as reason:
                    left_out.append(f"  {other:18} left out: {reason}")
            gate = gates.of_transformer(work, rule)
            for count in options.counts or (1, 8, 32, 256):
                # Not the first class: BERT's padding token, whose row of the tied weight is zero.
                chosen = spread_out(count, work.classes - 1) + 1
                case = Case("transformers", name, rule, chosen, work.x.shape[-1])
                yield Round(case, parts, work.x, options.repeats or 3, left_out, gate(chosen))


SCENARIOS: dict[str, Callable[[Options], Iterator[Round]]] = {
    "targets": targets, "batch": batch, "top5": top5, "small": small, "toolbox": lrp_toolbox, "sweep": sweep,
    "stream": stream, "basis": basis, "transformers": transformers,
}  # fmt: skip
