"""``python -m fastlrp.tune``: measures the Triton kernels' configurations on this GPU and writes what is fastest here.

Every candidate computes the layers of VGG-16 and ResNet-50 and the attention of transformers (or a user's shapes). Its
output is compared with the ``torch`` backend's before its time counts; times are taken in turns and their medians
compared. The table goes into
:func:`fastlrp.kernels.configs.cache_folder` and is used from then on, on this model of GPU and with this Triton.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastlrp.files import whole
from fastlrp.kernels import configs
from fastlrp.kernels.configs import KINDS, Measured, TableError
from fastlrp.tune import attention, space, workloads
from fastlrp.tune.space import KERNELS
from fastlrp.tune.tuner import Tried, Tuner
from fastlrp.tune.workloads import Workload

DTYPES = {"float32": ("tf32", "ieee"), "float16": ("half",), "bfloat16": ("half",)}
"""How products of each dtype are made. Both 16-bit types share the rows of kind ``half``."""

_DEFAULT_DTYPES = ("float32", "float16")
_ASSUMED_SHARED = 227 << 10
_L2_BYTES = 256 << 20
_SHARE_OF_MEMORY = 0.6


class CudaTimer:
    """One call between two events, behind work that empties the L2 cache and lets the CPU run ahead."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(_L2_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self._device):
            self._flush.zero_()
            start.record()
            run()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3


def write(path: Path, device_key: str, measured: Measured, rows: Sequence[dict[str, Any]]) -> None:
    """A table with these rows, and those of the file that is there and says nothing of the same calls.

    Raises:
        TableError: if the file that is there is not a table.
    """
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    if path.exists():
        configs.read(path)  # The error of a broken file names it.
        kept = {_key(row): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    kept |= {_key(row): row for row in rows}
    lines = ",\n".join(f"  {json.dumps(row)}" for _, row in sorted(kept.items()))
    head = {"format": configs.FORMAT, "device": device_key, "measured": asdict(measured)}
    text = f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n'
    configs.parse(json.loads(text))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as stream:
        stream.write(text.encode())


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["kernel"], row["shape_class"], row["kind"]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="python -m fastlrp.tune",
        description="Measure the Triton kernels' tile sizes and routes on this GPU, and write the fastest into the "
        "cache folder, where fastlrp finds them. Outputs are checked before their times count.",
    )
    made.add_argument("--kernel", action="append", choices=list(KERNELS), help="only this one; may be repeated")
    made.add_argument("--dtype", action="append", choices=list(DTYPES), help="default: float32 and float16")
    made.add_argument("--device", default="cuda", help="which GPU: cuda, cuda:1 (default: the current one)")
    made.add_argument("--shapes", type=Path, metavar="FILE", help="JSON list of shapes instead of the models'")
    made.add_argument("--out", type=Path, metavar="FILE", help="write the table here, not into the cache folder")
    made.add_argument("--quick", action="store_true", help="fewer shapes, candidates and repeats")
    made.add_argument("--dry-run", action="store_true", help="list shapes and candidates; needs no GPU")
    return made


def no_gpu(device: torch.device) -> str | None:
    """Why nothing can be measured, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'triton>=3.6'"
    if device.type != "cuda":
        return f"--device must be a CUDA device, got {device}"
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        return f"there is no GPU to measure on (PyTorch {torch.__version__} {built}); --dry-run needs none"
    if device.index is not None and device.index >= torch.cuda.device_count():
        return f"there is no {device}: {torch.cuda.device_count()} GPUs are visible"
    return None


def standard(quick: bool) -> list[Workload]:
    """What is measured if nobody says otherwise."""
    return workloads.standard(quick) + attention.standard(quick)


def dry_run(work: Sequence[Workload], kernels: Sequence[str], kinds: Sequence[str], shared: int, quick: bool) -> None:
    """Print what would be measured."""
    print(f"{len(work)} shapes:")
    for workload in work:
        print(f"  {workload}")
    for kernel in kernels:
        widest = max((w.inputs // w.groups for w in work if w.op == KERNELS[kernel]), default=0)
        if not widest:
            print(f"\n{kernel}: no shape calls {KERNELS[kernel]}")
            continue
        for kind in kinds:
            found = space.candidates(kernel, kind, shared, widest, quick)
            print(f"\n{kernel}, {kind}: {len(found)} candidates within {shared >> 10} KiB of shared memory")
            print("  " + " ".join(map(str, found)))


def chosen(found: dict[tuple[str, str, str], Tried]) -> str:
    """One line for each row: what was chosen, against what fastlrp's own table says."""
    lines = []
    for (kernel, shape, kind), tried in sorted(found.items()):
        place = f"{kernel:<20} {shape:<16} {kind}"
        try:
            best = tried.best()
        except ValueError as error:
            lines.append(f"{place}  {error}")
            continue
        default = tried.default
        text = f"{place}  {best}  {tried.seconds(best) * 1e6:.0f} us"
        if default is not None and default != best and all(default in times for times in tried.times.values()):
            text += f"; the default {default} takes {tried.slowdown(default) / tried.slowdown(best):.2f} times as long"
        lines.append(text)
    lines += [
        f"WRONG  {kernel} {kind} {config}: {why}"
        for (kernel, _, kind), tried in sorted(found.items())
        for config, why in tried.wrong.items()
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 if a candidate's output was wrong, which is an error in fastlrp or in Triton."""
    options = parser().parse_args(argv)
    kernels = options.kernel or list(KERNELS)
    dtypes = options.dtype or list(_DEFAULT_DTYPES)
    try:
        device = torch.device(options.device)
        work = workloads.read(options.shapes) if options.shapes else standard(options.quick)
    except (RuntimeError, ValueError) as error:
        parser().error(str(error))
    work = [w for w in work if w.op in {KERNELS[kernel] for kernel in kernels}]
    reason = no_gpu(device)
    if options.dry_run:
        kinds = [kind for kind in KINDS if any(kind in DTYPES[dtype] for dtype in dtypes)]
        shared = _ASSUMED_SHARED if reason else _properties(device).shared_memory_per_block_optin
        dry_run(work, kernels, kinds, shared, options.quick)
        return 0
    if reason is not None:
        parser().error(reason)
    try:
        return _measure(device, work, kernels, dtypes, options.quick, options.out)
    except TableError as error:
        parser().error(str(error))


def _properties(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)


def _measure(
    device: torch.device,
    work: Sequence[Workload],
    kernels: Sequence[str],
    dtypes: Sequence[str],
    quick: bool,
    out: Path | None,
) -> int:
    import triton

    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    name, today = torch.cuda.get_device_name(device), datetime.date.today().isoformat()
    path = out or configs.own_path(name, triton.__version__)
    if path.exists():
        configs.read(path)  # Said before anything is measured.
    shared = _properties(device).shared_memory_per_block_optin
    free = torch.cuda.mem_get_info(device)[0]
    tuner = Tuner(
        device, CudaTimer(device), shared, int(_SHARE_OF_MEMORY * free), print, quick,
        settle=lambda: torch.cuda.synchronize(device),
    )  # fmt: skip
    measured = Measured(name, triton.__version__, today)
    with torch.cuda.device(device), torch.no_grad():
        for dtype in dtypes:
            for kind in DTYPES[dtype]:
                tuner.tune(work, kernels, getattr(torch, dtype), kind)
                # After each kind: what was measured is kept if the next is interrupted.
                write(path, configs.device_key("cuda", device.index), measured, tuner.rows())
    configs.reload()
    print(f"\n{chosen(tuner.found)}\n\nwritten: {path}")
    return 1 if any(tried.wrong for tried in tuner.found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
