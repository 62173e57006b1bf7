"""What the GPU kernels are to reach, and whether the rows of a run show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Found = tuple[str, float | None]
"""What was measured, and its value; None if it was measured and gave none."""

MODELS = ("vgg16", "resnet50")
COMPOSITES = ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1")
PRECISIONS = ("tf32", "bfloat16")
PRODUCTS = ("linear_relevance", "conv_relevance", "conv_unpooled_relevance", "input_relevance", "input_flat_relevance")
PASSES = (
    "pool_max_relevance", "pool_ties_relevance", "pool_avg_relevance", "pool_adaptive_avg_relevance",
    "elementwise_coefficients", "elementwise_pooled_coefficients",
)  # fmt: skip
ATTENTION = ("attention_forward", "attention_relevance", "attention_value_relevance", "attention_up")
GIGABYTE = 1e9
SMALLEST = 64 << 20
"""Bytes of a call below which its launch is what is measured, not its rate."""


@dataclass(frozen=True)
class Goal:
    """One line of what is wanted: ``least`` or ``most`` of a value, of every row that ``find`` picks."""

    what: str
    find: Callable[[list[Row]], list[Found]]
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"

    def is_met(self, value: float | None) -> bool:
        if value is None:
            return False
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)

    def judge(self, rows: list[Row]) -> tuple[str, str, str]:
        """Wanted, found, and ``met``, ``missed`` or ``not measured``; the worst found is named. A CPU shows nothing."""
        found = self.find([row for row in rows if row.get("device", "cpu") != "cpu"])
        if not found:
            return self.wanted, "–", "not measured"
        good = sum(self.is_met(value) for _, value in found)
        worst, value = min(found, key=self._rank)
        shown = "no time" if value is None else f"{value:.2f}"
        where = f" ({worst})" if worst else ""
        count = f", {good} of {len(found)} met" if len(found) > 1 else ""
        return self.wanted, f"{shown}{where}{count}", "met" if good == len(found) else "missed"

    def _rank(self, found: Found) -> float:
        """The lower, the worse."""
        if found[1] is None:
            return float("-inf")
        return found[1] if self.least is not None else -found[1]


def _of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _models(scenario: str, key: str, composite: str, model: str, name: str) -> Callable[[list[Row]], list[Found]]:
    asked = {"targets": {"targets": 256, "batch": 1}, "batch": {"targets": 1, "batch": 64}}[scenario]

    def find(rows: list[Row]) -> list[Found]:
        own = _of(rows, scenario=scenario, model=model, composite=composite, precision=name, size=224, **asked)
        return [("", row.get(key)) for row in own if row.get("provider") == "fastlrp auto"]

    return find


def _ops(
    ops: tuple[str, ...], backends: tuple[str, ...], key: str, least: int = 0, precisions: tuple[str, ...] = ()
) -> Callable[..., list[Found]]:
    def find(rows: list[Row]) -> list[Found]:
        """Every call by the better of the backends."""
        best: dict[str, float | None] = {}
        for row in rows:
            if row.get("op") in ops and row.get("backend") in backends and not row.get("unable"):
                if row.get("bytes", 0) < least or (precisions and row["precision"] not in precisions):
                    continue
                name = f"{row['op']} {row['call']} K={row['targets']} {row['precision']}"
                value = row.get(key)
                known = best.setdefault(name, value)
                if value is not None and (known is None or value > known):
                    best[name] = value
        return list(best.items())

    return find


def _gradient(rows: list[Row]) -> list[Found]:
    """Attention's way down for 32 targets beside as many of PyTorch's own backward passes."""
    own = _of(rows, part="transformer", what="gradient", backend="triton", targets=32)
    own = [row for row in own if row["precision"] in PRECISIONS]
    return [(f"{row['call']} {row['precision']}", row.get("times_faster_than_gradient")) for row in own]


def _sparse(density: float, way: str) -> Callable[[list[Row]], list[Found]]:
    def find(rows: list[Row]) -> list[Found]:
        own = [row for row in _of(rows, part="sparse", density=density) if row.get("way", "down") == way]
        return [(row["call"], row.get("times_faster_than_dense")) for row in own if row["targets"] == 128]

    return find


def _flat(rows: list[Row]) -> list[Found]:
    """Time per target of 1000 targets over that of 256."""
    found = []
    for many in _of(rows, scenario="stream", model="vgg16", targets=1000, provider="fastlrp auto", size=224):
        same = {key: many[key] for key in ("composite", "precision", "commit", "device")}
        few = _of(rows, scenario="stream", model="vgg16", targets=256, provider="fastlrp auto", size=224, **same)
        times = [row["seconds_per_target"] for row in (many, *few)]
        if few and all(times):
            found.append((many["precision"], times[0] / times[-1]))
    return found


def _memory(rows: list[Row]) -> list[Found]:
    own = _of(rows, scenario="stream", model="vgg16", targets=1000, provider="fastlrp auto", size=224)
    held = [(row["precision"], row.get("peak_bytes_in_all")) for row in own]
    return [(name, None if size is None else size / GIGABYTE) for name, size in held]


def goals() -> list[Goal]:
    """All of them."""
    bounds = {"targets": (4, 12, 8), "batch": (3, 8, 5)}
    found = []
    for scenario, title in (("targets", "one image, K = 256"), ("batch", "64 images, one target each")):
        for model in MODELS:
            for name in PRECISIONS:
                for composite, least in zip(COMPOSITES, bounds[scenario], strict=True):
                    what = f"{title}: {model}, {composite}, {name}, times faster than Zennit"
                    key = "times_faster_than_zennit"
                    found.append(Goal(what, _models(scenario, key, composite, model, name), least=least))
    for model in MODELS:
        for name in PRECISIONS:
            for composite, most in zip(COMPOSITES, (1.15, 1.2, 2.2), strict=True):
                what = f"one image, K = 256: {model}, {composite}, {name}, time over the dense floor"
                found.append(Goal(what, _models("targets", "share_of_floor", composite, model, name), most=most))
    below = _models("targets", "share_of_floor", "epsilon_plus", "vgg16", "tf32")
    found.append(Goal("one image, K = 256: vgg16, epsilon_plus, tf32, at or below the dense floor", below, most=1.0))
    found.append(Goal("K = 1000 on vgg16: time per target over that of 256", _flat, most=1.1))
    found.append(Goal("K = 1000 on vgg16: memory of the process on the device, GB", _memory, most=8.0))
    ratio, rate = "times_faster_than_composed", "of_peak_bytes"
    both = ("triton", "cuda")
    found.append(Goal("products: times faster than composed PyTorch calls", _ops(PRODUCTS, both, ratio), least=1.3))
    text = "pools and coefficients in CUDA C++, calls of 64 MiB and more: "
    found.append(Goal(text + "times faster than composed", _ops(PASSES, ("cuda",), ratio, SMALLEST), least=2.0))
    found.append(Goal(text + "share of the copy's bandwidth", _ops(PASSES, ("cuda",), rate, SMALLEST), least=0.8))
    text = "attention, with tensor cores: times faster than "
    found.append(Goal(text + "composed", _ops(ATTENTION, both, ratio, precisions=PRECISIONS), least=1.3))
    found.append(Goal(text + "PyTorch's backward passes, K = 32", _gradient, least=1.0))
    found.append(Goal("norms: share of the copy's bandwidth", _ops(("norm_relevance",), both, rate), least=0.7))
    walk = _ops(("recurrence_relevance",), ("triton",), ratio)
    found.append(Goal("recurrent layers: times faster than composed, one call per operation and step", walk, least=3.0))
    for density, ratio_wanted in ((0.5, 1.2), (0.25, 2.5)):
        for way in ("down", "up"):
            what = f"living neurons only, the way {way}, density {density:g}, K = 128: times faster than dense"
            found.append(Goal(what, _sparse(density, way), least=ratio_wanted))
    return found
