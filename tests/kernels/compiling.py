"""Compiles kernels for GPUs that are not here, and reads from the results what would go wrong on one.

Run as a program, because the process must not interpret kernels as the tests beside it do:
``python -m tests.kernels.compiling MODULE,MODULE TARGET few|many|all`` prints for each module one JSON object per
compiled kernel, then one with the number left out and the names of all kernels. All of ``planted`` is compiled.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastlrp.kernels import configs

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLANTED = "tests.kernels.planted"
SHARED = {80: 99 << 10, 90: 227 << 10}
"""Bytes of shared memory that a block may have. On 8.0 that is 163 KiB, but the tables for other GPUs have the rows of
that for 8.0, and on 8.6 and 8.9 it is 99."""

FRAME = 8
"""Bytes of stack that are let pass: one address that ptxas keeps there in a few kernels, outside their loops' sums."""

REGISTERS = 255
FILE = 65536  # registers of a multiprocessor

_ATOMIC = re.compile(r"\b(?:atom|red)\.(?!async)[\w.:]*\.(?:f16|f16x2|bf16|bf16x2|f32|f64)\b")
_TENSOR_CORES = re.compile(r"\b(?:wgmma\.mma_async|mma)\.sync\b")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass
class Compiled:
    """What became of one kernel. ``faults`` is empty where all is well."""

    name: str
    dtype: str
    seconds: float
    shared: int
    registers: int
    stack: int
    faults: list[str]


# What must hold


def faults(c: Any, target: int, shared: int, registers: int, stack: int, ptx: str, ttir: str) -> list[str]:
    """All that is wrong with a compiled kernel."""
    found = []
    if shared > SHARED[target]:
        found.append(f"{shared} bytes of shared memory, a block may have {SHARED[target]}")
    if stack > FRAME:
        found.append(f"{stack} bytes of stack: registers spill")
    if registers > REGISTERS or registers * 32 * c.num_warps > FILE:
        found.append(f"{registers} registers for {32 * c.num_warps} threads")
    if bool(_TENSOR_CORES.search(ptx)) != c.tensor_cores:
        found.append(f"tensor cores {'are not' if c.tensor_cores else 'are'} used")
    if c.tensor_cores and not {"*fp16", "*bf16"} & set(c.signature.values()) and ".tf32" not in ptx:
        found.append("the product is not TF32")
    found += [f"float atomic: {atomic}" for atomic in sorted(set(_ATOMIC.findall(ptx)))]
    return found + narrow_addresses(c, ttir)


def strides(c: Any) -> set[str]:
    """Parameters that are strides: named after a tensor's pointer and an axis, but for the sizes ``_d, _h, _w``."""
    names = [p.name for p in c.kernel.params]
    pointers = {n for n in names if c.signature.get(n, "").startswith("*") or (n in c.constexprs and n.islower())}
    return {
        name
        for name in names
        if any(name.startswith(f"{p}_") for p in pointers) and name.rsplit("_", 1)[1] not in ("d", "h", "w")
    }


def narrow_addresses(c: Any, ttir: str) -> list[str]:
    """Products of 32 bits with a stride, and 32-bit offsets that are products of two numbers known at run time."""
    ir = Ir(ttir)
    names = [n for n in (p.name for p in c.kernel.params) if n in c.signature]
    argument = dict(zip(ir.arguments, names, strict=True))
    wide = strides(c)
    found = []
    for result, (operation, operands, kind) in ir.values.items():
        if operation == "arith.muli" and kind.endswith("i32"):
            by = {argument.get(ir.origin(o)) for o in operands} & wide
            found += [f"32-bit product with the stride {name}" for name in sorted(filter(None, by))]
        if operation == "tt.addptr" and ir.is_narrow(operands[1]) and ir.has_product(operands[1]):
            found.append(f"32-bit offset {result} is a product")
    return found


class Ir:
    """As much of Triton's intermediate language as tells where numbers come from."""

    _LINE = re.compile(r"^\s*(%[\w.$-]+)(?::\d+)? = ([\w.]+)\s*(.*?)(?:\s*:\s*(.*?))?(?:\s+loc\(.*)?$")
    _NAME = re.compile(r"%[\w.$-]+")

    def __init__(self, text: str) -> None:
        header = next(line for line in text.splitlines() if "tt.func public" in line)
        self.arguments = re.findall(r"(%[\w.$-]+):", header)
        self.values: dict[str, tuple[str, list[str], str]] = {}
        for line in text.splitlines():
            match = self._LINE.match(line)
            if match is not None:
                name, operation, rest, kind = match.groups()
                self.values[name] = (operation, self._NAME.findall(rest), (kind or "").rstrip("> "))

    def origin(self, name: str) -> str:
        """Through what only copies a number."""
        while name in self.values and self.values[name][0] in ("tt.splat", "tt.broadcast", "tt.expand_dims"):
            name = self.values[name][1][0]
        return name

    def is_narrow(self, name: str) -> bool:
        """Whether it has 32 bits; unknown for what a loop carries, which counts as wide."""
        if name not in self.values:
            return False
        kind = self.values[name][2]
        return kind.split("->")[-1].strip(" >").endswith("i32")

    def has_product(self, name: str, seen: set[str] | None = None) -> bool:
        """Whether a sum of 32 bits has a product of two numbers in it of which none is a constant."""
        seen = set() if seen is None else seen
        if name in seen or name not in self.values or not self.is_narrow(name):
            return False
        seen.add(name)
        operation, operands, _ = self.values[name]
        if operation == "arith.muli" and not any(self._is_constant(o) for o in operands):
            return True
        return any(self.has_product(o, seen) for o in operands)

    def _is_constant(self, name: str) -> bool:
        origin = self.origin(name)
        return self.values.get(origin, ("",))[0] == "arith.constant"


# Compiling


def compile_one(c: Any, dtype: str, target: int) -> Compiled:
    """One kernel, compiled and looked at."""
    import time

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    start = time.perf_counter()
    names = [p.name for p in c.kernel.params]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in c.divisible_by_16}
    missing = set(names) - set(c.signature) - set(c.constexprs)
    if missing:
        return Compiled(c.name, dtype, 0, 0, 0, 0, [f"neither type nor value of {', '.join(sorted(missing))}"])
    signature = {n: c.signature.get(n, "constexpr") for n in names}
    source = ASTSource(c.kernel, signature, constexprs=dict(c.constexprs), attrs=attributes)
    options = {"num_warps": c.num_warps, "num_stages": c.num_stages}
    try:
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    except Exception as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[-1]
        return Compiled(c.name, dtype, time.perf_counter() - start, 0, 0, 0, [f"does not compile: {reason}"])
    registers, stack = usage(made.asm["cubin"])
    shared = made.metadata.shared
    wrong = faults(c, target, shared, registers, stack, made.asm["ptx"], made.asm["ttir"])
    return Compiled(c.name, dtype, time.perf_counter() - start, shared, registers, stack, wrong)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack and local memory."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    match = _USAGE.search(text)
    assert match is not None, text
    return int(match[1]), int(match[2]) + int(match[3])


# Choosing


def few(found: list[list[Any]]) -> list[list[Any]]:
    """Those that are compiled every time, of what each dtype has, for 9.0.

    Of every kernel every value of every constant, every argument where it is given and where it is not, and every dtype
    at least once, in as few compilations as a greedy choice needs, each with the smallest tile that will do; and its
    largest tile, whose registers and shared memory are the first to run out.
    """
    every = [(dtype, c) for dtype, group in enumerate(found) for c in group]
    features = [_features(dtype, c) for dtype, c in every]
    left = set().union(*features)
    taken: set[int] = set()
    for kernel in sorted({c.kernel.__name__ for _, c in every}):
        places = [i for i, (_, c) in enumerate(every) if c.kernel.__name__ == kernel]
        taken.add(max(places, key=lambda i: _size(every[i][1])))
    left.difference_update(*(features[i] for i in taken))
    while left:
        best = max(range(len(every)), key=lambda i: (len(features[i] & left), -_size(every[i][1])))
        taken.add(best)
        left -= features[best]
    return [[c for i, (d, c) in enumerate(every) if i in taken and d == dtype] for dtype in range(len(found))]


def _features(dtype: int, c: Any) -> set[tuple[Any, ...]]:
    constants = {(k, repr(v)) for k, v in c.constexprs.items() if not k.startswith(("BLOCK", "TARGETS"))}
    others = {("dtype", dtype), *(("argument", name) for name in c.signature)}
    return {(c.kernel.__name__, *feature) for feature in constants | others}


def many(found: Iterable[Any], dtype: int, target: int) -> list[Any]:
    """Those that are compiled in a full run.

    For 9.0 every tile of every kernel with one of its variants, in turn, in float32 and every third tile, another third
    for each, in the other dtypes; and every variant with one tile for at least one of the three dtypes. For 8.0 every
    sixth tile, another sixth for each dtype.
    """
    every = list(found)
    tiles: dict[Any, list[Any]] = {}
    for c in every:
        tiles.setdefault(_tile(c), []).append(c)
    taken: dict[str, Any] = {}
    seen: set[Any] = set()
    for number, group in enumerate(tiles.values()):
        if number % 6 == dtype or (target == 90 and dtype in (0, number % 3)):
            start = (number + dtype) % len(group)
            turned = group[start:] + group[:start]
            pick = next((c for c in turned if _variant(c) not in seen), turned[0])
            taken[pick.name] = pick
            seen.add(_variant(pick))
    if target == 90:
        variants: dict[Any, Any] = {}
        for c in sorted(every, key=_size):
            variants.setdefault(_variant(c), c)
        for number, (variant, c) in enumerate(variants.items()):
            if number % 3 == dtype and variant not in seen:
                taken[c.name] = c
    return list(taken.values())


def _tile(c: Any) -> Any:
    blocks = tuple(sorted((k, v) for k, v in c.constexprs.items() if k.startswith("BLOCK") or k == "PRECISION"))
    return c.kernel.__name__, blocks, c.num_warps, c.num_stages


def _variant(c: Any) -> Any:
    tile = ("BLOCK", "PRECISION", "TARGETS")
    rest = tuple(sorted((k, repr(v)) for k, v in c.constexprs.items() if not k.startswith(tile)))
    return c.kernel.__name__, rest, tuple(sorted(c.signature)), c.divisible_by_16


def _size(c: Any) -> int:
    size = c.num_stages
    for name, value in c.constexprs.items():
        size *= value if name.startswith("BLOCK") and value else 1
    return size


def run(module: str, target: int, how: str) -> Iterator[dict[str, Any]]:
    """Results of one module, then how many of its compilations were left out."""
    name = module if "." in module else f"fastlrp.kernels.{module}"
    compilations = importlib.import_module(name).compilations
    found = []
    for dtype in DTYPES:
        with configs.of_devices(*(("sm90",) if target == 90 else ("sm80", "other"))):
            found.append(list(compilations(dtype)))
        assert len({c.name for c in found[-1]}) == len(found[-1]), "two compilations have the same name"
    count = sum(map(len, found))
    names = sorted({c.kernel.__name__ for group in found for c in group})
    if how == "few" and module != PLANTED:
        found = few(found)
    if how == "many":
        found = [many(group, number, target) for number, group in enumerate(found)]
    for dtype, group in zip(DTYPES, found, strict=True):
        for c in group:
            yield asdict(compile_one(c, str(dtype).removeprefix("torch."), target))
    yield {"module": module, "left out": count - sum(map(len, found)), "kernels": names}


if __name__ == "__main__":
    for module in sys.argv[1].split(","):
        for line in run(module, int(sys.argv[2]), sys.argv[3]):
            print(json.dumps(line), flush=True)
