"""Which configuration of a kernel is fastest on a device: each candidate is checked, measured in turns, and one chosen.

Nothing here knows a GPU: what measures is handed in. :mod:`fastlrp.tune` is the command.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch

from fastlrp.backends import dispatch
from fastlrp.kernels import configs
from fastlrp.kernels.configs import Config
from fastlrp.plan.plan import GPU_REGISTER_BYTES
from fastlrp.tune import attention
from fastlrp.tune.check import Check, Result, precision
from fastlrp.tune.space import candidates
from fastlrp.tune.workloads import Workload

ROUNDS, QUICK_ROUNDS = 15, 5
_WORTH_A_SECOND_LOOK = 1.3

Key = tuple[str, str]
"""Kernel and shape class."""


class Timer(Protocol):
    """Measures one call of a function, in seconds."""

    def __call__(self, run: Callable[[], object]) -> float: ...


@dataclass
class Tried:
    """What became of the candidates for one kernel and shape class: times by workload, and why others were left out.

    ``default``: what fastlrp's own table says; it is one of the candidates.
    """

    default: Config | None = None
    times: dict[Workload, dict[Config, float]] = field(default_factory=dict)
    refused: dict[Config, str] = field(default_factory=dict)
    wrong: dict[Config, str] = field(default_factory=dict)

    def best(self) -> Config:
        """The candidate with the least geometric mean of its times, each over the workload's best.

        Raises:
            ValueError: if no candidate computed every workload.
        """
        complete = [c for c in self._tried() if all(c in times for times in self.times.values())]
        if not complete:
            raise ValueError(
                "no candidate computed every shape: `refused` and `wrong` say why of each; give fewer shapes"
            )
        return min(complete, key=self.slowdown)

    def slowdown(self, config: Config) -> float:
        """How much longer it took than each workload's best, geometric mean."""
        ratios = [times[config] / min(times.values()) for times in self.times.values()]
        return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))

    def seconds(self, config: Config) -> float:
        return sum(times[config] for times in self.times.values())

    def _tried(self) -> Iterable[Config]:
        return dict.fromkeys(c for times in self.times.values() for c in times)


class Tuner:
    """Tries candidates on one device.

    Args:
        timer: measures one call. shared_limit: bytes of shared memory of a block. memory: bytes that one workload may
            take. say: where a line of progress goes. settle: raises if the device can do nothing more after an error.
    """

    def __init__(
        self,
        device: torch.device,
        timer: Timer,
        shared_limit: int,
        memory: int,
        say: Callable[[str], None] = print,
        quick: bool = False,
        spaces: Callable[..., list[Config]] = candidates,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self.device, self.timer, self.shared_limit, self.memory = device, timer, shared_limit, memory
        self.say, self.rounds, self.quick = say, QUICK_ROUNDS if quick else ROUNDS, quick
        self._spaces, self._settle = spaces, settle
        self.found: dict[tuple[str, str, str], Tried] = {}

    def tune(self, work: Sequence[Workload], kernels: Sequence[str], dtype: torch.dtype, kind: str) -> None:
        """Measure all candidates of these kernels on the workloads that call them."""
        with precision(kind):
            for workload in work:
                small = fitting(workload, dtype.itemsize, self.memory)
                if small is None:
                    self.say(f"{workload}: left out, it needs more than {self.memory >> 20} MiB")
                    continue
                arguments = small.arguments(self.device, dtype)
                call = dispatch.select(small.op, "triton", self.device, dtype).call
                for key in self._keys(call, arguments, kernels):
                    tried = self.found.setdefault((*key, kind), Tried())
                    if small not in tried.times:
                        self.say(f"{small} {kind}: {key[0]}, shape class {key[1]!r}")
                        tried.times[small] = self._times(key, small, call, arguments, kind, tried)

    @staticmethod
    def _keys(call: Callable[..., Any], arguments: tuple[Any, ...], kernels: Sequence[str]) -> list[Key]:
        """The rows of a table that a call depends on."""
        asked: list[Key] = []

        def listen(kernel: str, shape_class: str, kind: str) -> None:
            asked.append((kernel, shape_class))

        with configs.choosing(listen):
            call(*arguments)
        return [key for key in _taken(asked) if key[0] in kernels]

    def _times(
        self,
        key: Key,
        workload: Workload,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        kind: str,
        tried: Tried,
    ) -> dict[Config, float]:
        columns = workload.inputs // workload.groups
        runs: dict[Config, Callable[[], Result]] = {}
        check = Check(workload.op, arguments, kind)
        tried.default = self._default(key, kind)
        spaces = self._spaces(key[0], kind, self.shared_limit, columns, self.quick)
        for config in dict.fromkeys([tried.default, *spaces]):
            if config in tried.refused or config in tried.wrong:
                continue
            asked: list[Key] = []
            run = partial(_run, call, arguments, key, asked, config=config)
            try:
                fault = check(run())
            except Exception as error:  # Whatever a compiler or a driver raises: the candidate is not for this device.
                tried.refused[config] = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                self._settle()
                continue
            if key not in _taken(asked):  # With tiles of this size the call goes another way.
                continue
            if fault:
                tried.wrong[config] = f"{workload}: {fault}"
            else:
                runs[config] = run
        return in_turns(runs, self.timer, self.rounds)

    def _default(self, key: Key, kind: str) -> Config:
        """What fastlrp's own table says."""
        found = configs.table(configs.device_key(self.device.type, self.device.index)).rows
        return found.get((*key, kind)) or found[key[0], "*", kind]

    def rows(self) -> list[dict[str, Any]]:
        """The fastest configurations, as rows of a table."""
        rows = []
        for (kernel, shape, kind), tried in sorted(self.found.items()):
            try:
                best = tried.best()
            except ValueError as error:
                self.say(f"{kernel}, {shape!r}, {kind}: {error}: the row stays what it was")
                continue
            rows.append(row(kernel, shape, kind, best, tried.seconds(best)))
        return rows


def row(kernel: str, shape_class: str, kind: str, config: Config, seconds: float) -> dict[str, Any]:
    """One row of a table; ``microseconds`` is what its workloads took together."""
    found = {"kernel": kernel, "shape_class": shape_class, "kind": kind, **vars(config)}
    return {**found, "microseconds": round(seconds * 1e6, 1)}


def _taken(asked: Sequence[Key]) -> Sequence[Key]:
    """Rows that a call took of those that it asked for: all of attention's, of others the last."""
    return [key for key in asked if key[0] in attention.KERNELS] or asked[-1:]


def _run(call: Callable[..., Any], arguments: tuple[Any, ...], key: Key, asked: list[Key], config: Config) -> Result:
    """The call with ``config`` in one place of the tables; ``asked`` gets the places that it looked at."""

    def choose(kernel: str, shape_class: str, kind: str) -> Config | None:
        asked.append((kernel, shape_class))
        return config if (kernel, shape_class) == key else None

    asked.clear()
    with configs.choosing(choose):
        result: Result = call(*arguments)
    return result


def in_turns(runs: Mapping[Config, Callable[[], object]], timer: Timer, rounds: int) -> dict[Config, float]:
    """Median time of each candidate, measured in turns; the slow ones drop out after two."""
    taken: dict[Config, list[float]] = {config: [] for config in runs}
    for number in range(rounds):
        if number == 2:
            fastest = min((min(times) for times in taken.values()), default=0.0)
            runs = {c: run for c, run in runs.items() if min(taken[c]) <= _WORTH_A_SECOND_LOOK * fastest}
        for config, run in runs.items():
            taken[config].append(timer(run))
    return {config: statistics.median(times) for config, times in taken.items()}


def fitting(workload: Workload, itemsize: int, memory: int) -> Workload | None:
    """The workload with as many targets as an explainer would take at once, or None if one does not fit.

    ``memory`` holds the relevance twice, the result, and what the library's route makes on the way.
    """
    limit = min(GPU_REGISTER_BYTES, memory // 6)
    each = workload.largest * itemsize
    targets = min(workload.targets, limit // each)
    return None if targets < 1 else replace(workload, targets=targets)
