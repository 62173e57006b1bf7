"""``python -m benchmarks.zoo``: sweep, and write ``docs/models.md``."""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.zoo import catalogue, page
from benchmarks.zoo.sweep import read, sweep

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "zoo" / "sweep.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="group/name, with * and ?; several times")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="for one model")
    parser.add_argument("--memory", type=float, default=6, metavar="GIB", help="for one model")
    parser.add_argument("--again", action="store_true", help="models too that have a result")
    parser.add_argument("--retry", action="store_true", help="models too that are not explained")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="names only")
    parser.add_argument("--write", action="store_true", help="write docs/models.md from the results")
    given = parser.parse_args()
    entries = [e for e in catalogue.entries() if given.only is None or any(_fits(e, p) for p in given.only)]
    if given.list:
        print("\n".join(f"{group}/{name}" for group, name, _ in entries))
    elif not given.write or given.only:
        known = read(given.results)
        done = {key for key, row in known.items() if not given.retry or page.explained(row)}
        left = entries if given.again else [e for e in entries if e[:2] not in done]
        sweep(left, given.results, given.jobs, given.limit, given.memory)
    if given.write:
        page.write(ROOT / "docs" / "models.md", read(given.results), [e[:2] for e in catalogue.entries()])


def _fits(entry: catalogue.Entry, pattern: str) -> bool:
    return fnmatch(f"{entry[0]}/{entry[1]}", pattern) or pattern in (entry[0], entry[1])


if __name__ == "__main__":
    main()
