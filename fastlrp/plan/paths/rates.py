"""How fast a device computes densely and for alive neurons only.

A CPU has rates that were measured on one machine of its sort. ``python -m fastlrp.tune.sparse --device cpu`` measures
those of this one, for plans with products of bfloat16; what is in float32 is chosen by the same rates everywhere, so
that its numbers are the same bit for bit. A GPU has none before somebody measures them on it: until then nothing is
chosen automatically there, only what ``paths=`` asks for.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from fastlrp.backends.extension import loaded
from fastlrp.files import whole
from fastlrp.kernels.configs import cache_folder
from fastlrp.precision import instruction_set

FORMAT = 1


@dataclass(frozen=True)
class Rates:
    """Of one core or one GPU: floating-point operations per second, bytes per second, seconds per tap and position.

    ``lanes``: targets that the sparse kernels take at the cost of one. ``half_filled``: operations per second where
    one vector of lanes is all there is. ``reduced``: how many times as fast dense products of bfloat16 are as those of
    float32; ``filtered``: those of float32 that go by Winograd's filtering, on a CPU, without what taking tiles apart
    costs (AMD EPYC: Zen 5 2.9, Zen 4 3.5 times; 1.5 to 2.7 with it).
    ``sparse_reduced``, ``half_reduced``: of bfloat16, for alive neurons only. The defaults stand between an AVX-512
    Xeon at 2.3 to 3 GHz (float32, ``python -m benchmarks.layers``: sparse 125 and 90 beside 150 dense) and AMD EPYCs
    (Zen 4 and 5: 130 and more), in the same proportions to what is dense.
    """

    dense: float = 150e9
    sparse: float = 135e9
    half_filled: float = 110e9
    memory: float = 12e9
    call: float = 15e-9
    lanes: int = 16
    reduced: float = 1.0
    filtered: float = 3.0
    sparse_reduced: float = 1e6
    half_reduced: float = 1e6


_GAIN = {"AMX": 7.0, "AVX512-BF16": 2.0}
"""Products of bfloat16 against those of float32: 2,700 against 380 GFLOP/s on two cores with AMX, 260 against 115 on
one of an AMD EPYC."""

_SPARSE_GAIN = {"amx": (2.5, 1.5), "avx512_bf16": (1.65, 1.9)}
"""The same for alive neurons, of more than one vector of targets and of one: by AVX512-BF16 on an AMD EPYC; by AMX
only estimated, by llvm-mca for Sapphire Rapids: 1.6 to 4 and 1.2 to 3 at densities from 0.2 to 0.5, as
docs/bfloat16.md shows. By software they are never worth it."""


class RatesError(ValueError):
    """A file of rates that cannot be used; the message names it and what to do."""


def rates_of(device: torch.device, reduced: bool = False) -> Rates | None:
    """A CPU's own, what was measured on this GPU, or None.

    Args:
        reduced: of plans that may read bfloat16, for which a CPU's measured rates hold.

    Raises:
        RatesError: for a file that is broken.
    """
    return _rates_of(device.type, device.index, bf16_unit() if reduced else None)


@lru_cache(maxsize=16)
def _rates_of(device_type: str, index: int | None, unit: str | None) -> Rates | None:
    if device_type == "cpu":
        if unit is None:
            return Rates()
        path = own_path(cpu_name(unit))
        return read(path) if path.exists() else shipped(unit)
    if device_type != "cuda" or not torch.cuda.is_available():
        return None
    path = own_path(torch.cuda.get_device_name(index))
    return read(path) if path.exists() else None


def shipped(unit: str) -> Rates:
    """What is taken of a CPU that nobody has measured; ``unit``: what the sparse kernels multiply bfloat16 with."""
    base = Rates(reduced=_GAIN.get(instruction_set() or "", 1.0))
    if unit not in _SPARSE_GAIN:
        return base
    many, few = _SPARSE_GAIN[unit]
    return replace(base, sparse_reduced=many * base.sparse, half_reduced=few * base.half_filled)


def bf16_unit() -> str:
    """What the sparse kernels multiply bfloat16 with."""
    ask: Callable[[], str] | None = getattr(loaded(), "bf16_unit", None)
    return "software" if ask is None else ask()


@cache
def processor() -> str:
    """The processor's model, by family and number too where the system knows them: virtual machines shorten names."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().partition("\n\n")[0].splitlines() if info.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    numbers = told.get("cpu family"), told.get("model")
    return name if None in numbers else f"{name} (family {numbers[0]}, model {numbers[1]})"


def cpu_name(unit: str) -> str:
    """The processor, and what multiplies bfloat16 on it."""
    return f"cpu {processor()} {unit}"


def own_path(device_name: str) -> Path:
    """Where the rates measured on a GPU, or on the CPU of :func:`cpu_name`, lie."""
    return cache_folder() / "rates" / (re.sub(r"[^A-Za-z0-9.]+", "-", device_name).strip("-") + ".json")


def read(path: Path) -> Rates:
    """Rates from their file.

    Raises:
        RatesError: for anything that is not one.
    """
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']}, expected {FORMAT}")
        rates = Rates(**data["rates"])
        if not all(
            isinstance(value, (int, float)) and value > 0 and math.isfinite(value) for value in asdict(rates).values()
        ):
            raise ValueError("every rate must be a finite number above zero")
        if type(rates.lanes) is not int:
            raise ValueError(f"lanes must be a whole number, got {rates.lanes}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RatesError(
            f"{path} holds no rates that can be used ({error!r}): delete it, or measure again with "
            "python -m fastlrp.tune.sparse"
        ) from error
    return rates


def write(path: Path, rates: Rates, measured: dict[str, Any]) -> None:
    """Rates with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as stream:
        stream.write(json.dumps({"format": FORMAT, "measured": measured, "rates": asdict(rates)}, indent=1).encode())
    _rates_of.cache_clear()
