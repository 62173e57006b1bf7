"""What the parts share: options, the file that rows go to as they are made, and the time that is left."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import provenance

Row = dict[str, Any]

FAILED, NO_GPU, LOST = 1, 2, 3
"""Exit codes: something measured is wrong; there is no GPU; the device answers no more."""


def no_gpu() -> str | None:
    """Why there is no CUDA device to measure on, or None."""
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device"
    return None


def listed(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(filter(None, text.split(",")))


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    return tuple(int(word) for word in listed(text))


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every part."""
    words = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--device", default="cuda")
    words.add_argument("--output", default="", help="file to append rows to")
    words.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    words.add_argument("--tiny", action="store_true", help="shapes that a CPU computes at once, to rehearse")
    return words


@dataclass
class Part:
    """One part at work.

    Attributes:
        name: in every row. made: what every row says of its origin. path: where rows go, or None.
        wrong: what was measured and found wrong. left_out: what there was no time for.
    """

    name: str
    device: torch.device
    made: Row
    path: Path | None = None
    seconds: float = float("inf")
    wrong: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._begin = self.clock()

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; what was written before stays, whatever happens next."""
        lines = [json.dumps({"part": self.name, **self.made, **row}) for row in rows]
        if self.path is not None and lines:
            with self.path.open("a") as file:
                file.writelines(line + "\n" for line in lines)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def is_late(self, what: str) -> bool:
        """Whether ``what`` must be left out, because the time is over."""
        late = self.clock() - self._begin >= self.seconds
        if late:
            self.left_out.append(what)
            self.say(f"{what}: left out, {self.seconds:.0f} seconds are over")
        return late

    def is_lost(self) -> bool:
        """Whether the device answers no more, as after a wrong address: then nothing more can be measured here."""
        if self.device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            self.wrong.append(f"the device is lost: {str(error).splitlines()[0]}")
            return True
        return False

    def code(self, lost: bool = False) -> int:
        """The exit code; says what was wrong."""
        for text in self.wrong:
            self.say(f"wrong: {text}")
        return LOST if lost else FAILED if self.wrong else 0


def begin(name: str, options: argparse.Namespace, given: Sequence[str]) -> Part:
    """Check the device, let the libraries choose their fastest algorithms, and begin.

    Raises:
        SystemExit: with :data:`NO_GPU` if there is no such device.
    """
    if options.device.startswith("cuda"):
        reason = no_gpu()
        if reason is not None:
            print(f"{name}: not measured, {reason}", file=sys.stderr)
            raise SystemExit(NO_GPU)
        torch.backends.cudnn.benchmark = True  # For everybody, fastlrp's rivals and the floor included.
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    path = Path(options.output) if options.output else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return Part(name, device, provenance(_command(name, given), device), path, options.seconds)


def _command(name: str, given: Sequence[str]) -> str:
    """What was typed, but for where rows go and how long it may take."""
    words, kept = list(given), [f"python -m benchmarks.gpu.{name}"]
    while words:
        word = words.pop(0)
        if word in ("--output", "--seconds"):
            words.pop(0)
        else:
            kept.append(word)
    return " ".join(kept)
