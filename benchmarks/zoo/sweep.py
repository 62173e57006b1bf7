"""A process for each model, with limits of time and memory; results as lines of JSON."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import time
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.case import Maker
from benchmarks.zoo.examine import examine

PATIENCE = 6
"""How many times longer than by the processor's time a process may take by the clock."""
Row = dict[str, Any]
Entry = tuple[str, str, Maker]


def read(path: Path) -> dict[tuple[str, str], Row]:
    """The newest row of each model."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    return {(row["group"], row["name"]): row for row in rows}


def sweep(entries: Iterable[Entry], path: Path, jobs: int, seconds: float, gigabytes: float) -> None:
    """Examine all entries, and append a row for each to the file as soon as it is there.

    Args:
        seconds: of the processor's time for one model, whatever else the machine does.
        gigabytes: for one model.
    """
    torch.set_num_threads(1)
    # A process that is forked has everything imported; nothing that starts threads has run in this one.
    context = multiprocessing.get_context("fork")
    waiting, running = list(entries), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        while waiting and len(running) < jobs:
            entry = waiting.pop(0)
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(entry[2], there, seconds, gigabytes))
            process.start()
            there.close()
            running[here] = (entry, process, time.monotonic(), {"group": entry[0], "name": entry[1]})
        for connection in wait(list(running), timeout=0.5):
            _hear(connection, running[connection][3])  # type: ignore[index, arg-type]
        for connection, (entry, process, started, row) in list(running.items()):
            late = time.monotonic() - started > PATIENCE * seconds
            if process.is_alive() and not late and "finished" not in row:
                continue
            if process.is_alive() and late and "finished" not in row:
                process.kill()
                row["ended"] = f"more than {PATIENCE * seconds:.0f} s by the clock"
            process.join()
            while connection.poll() and _hear(connection, row):
                pass
            if row.pop("finished", None) is None and "ended" not in row:
                row["ended"] = _end(process.exitcode, seconds)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{entry[0]}: {entry[1]}: {judgement(row)} {reason(row)[:150]}".rstrip(), flush=True)
            del running[connection]


def _hear(connection: Connection, row: Row) -> bool:
    try:
        row.update(connection.recv())
    except EOFError:
        return False
    return True


def _end(code: int | None, seconds: float) -> str:
    if code == -signal.SIGXCPU:
        return f"more than {seconds:.0f} s"
    return "too much memory" if code == -signal.SIGKILL else f"the process ended with {code}"


def _work(make: Maker, connection: Connection, seconds: float, gigabytes: float) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    try:
        examine(make, connection.send)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        connection.send({"failed": f"{type(error).__name__}: {error}"[:1500], "place": f"{place.name}:{place.lineno}"})
    connection.send({"seconds": round(time.process_time(), 1), "finished": True})


CHECKS = ("output_error", "gradient_error", "alone_error")
LIMIT = {"torch.float64": 1e-5, "torch.float32": 1e-2}
"""Largest relative difference."""
MIXED = 1e-3
"""The same for models in float64 that compute parts of themselves in float32. Most reach 1e-6; where the terms of a
gradient cancel, autograd itself changes by 1e-4 when what is looked up is rounded to float32 (MiniMax)."""


def judgement(row: Row) -> str:
    """One word: explained (and right), refused, wrong, failed, or ended by a limit."""
    if "failed" in row:
        return "failed"
    if "refused" in row:
        return "refused"
    if wrong(row):
        return "wrong"
    if "ended" in row:
        return "ended"
    return "explained"


def wrong(row: Row) -> list[str]:
    """The checks that did not hold."""
    most = MIXED if row.get("mixed") else LIMIT.get(row.get("dtype", ""), 1e-2)
    found = [f"{name} {row[name]:.1e}" for name in CHECKS if not (row.get(name) or 0.0) <= most]
    found += ["not finite"] if row.get("finite") is False else []
    found += ["all zero"] if row.get("silent") else []
    return found + (["not verified"] if row.get("verified") is False else [])


def reason(row: Row) -> str:
    """Why it is not explained."""
    if "failed" in row:
        return f"{row['failed']} (while {row.get('step')})"
    if "refused" in row:
        return str(row["refused"])
    if wrong(row):
        return ", ".join(wrong(row))
    return f"{row['ended']} (while {row.get('step')})" if "ended" in row else ""
