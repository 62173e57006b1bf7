"""fastlrp beside Zennit and the plain gradient, in one process, alternating.

    python -m benchmarks.compare --models vgg16,resnet50 --composites epsilon_plus,epsilon_gamma_box --targets 32

Seconds per target include each provider's one forward pass. Outputs are compared before anything is timed; a provider
whose output disagrees is reported as such and not timed. Appends a row per measurement to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import build
from benchmarks.providers import Provider, gradient, ours, zennit

RESULTS = Path(__file__).parent / "results"
AGREES = 1e-4


def providers(model: Any, name: str, rules: str, backends: list[str], peers: bool) -> list[Provider]:
    """Everybody who takes part, fastlrp first."""
    family = "resnet" if "resnet" in name else "vgg"
    others = [zennit(model, rules, family, False), zennit(model, rules, family, True)] if peers else []
    return [*(ours(model, rules, b) for b in backends), gradient(model), *others]


def disagreement(ours: Tensor, theirs: Tensor) -> float:
    """Largest relative difference (2-norm) of any target."""
    ours, theirs = ours.flatten(2), theirs.flatten(2)
    return float(((ours - theirs).norm(dim=2) / theirs.norm(dim=2)).max())


def measure(parts: list[Provider], x: Tensor, targets: list[int], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds per target of each, taken in turns."""
    expected = parts[0].run(x, targets[:2])
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        answer = part.run(x, targets[:2])
        found[part.name] = {"error": disagreement(expected, answer) if part.comparable else None, "seconds": []}
    for _ in range(repeats):
        for part in parts:
            entry = found[part.name]
            if entry["error"] is not None and entry["error"] > AGREES:
                continue
            asked = targets[: part.limit] if part.limit else targets
            begin = time.perf_counter()
            part.run(x, asked)
            entry["seconds"].append((time.perf_counter() - begin) / len(asked))
    return found


def commit() -> str:
    """The commit that is measured; ``+`` if the tree has changes."""
    here = Path(__file__).parent
    run = lambda *words: subprocess.run(["git", *words], cwd=here, capture_output=True, text=True).stdout.strip()  # noqa: E731
    return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")


def machine() -> str:
    """Processor and threads."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return f"{model}, {torch.get_num_threads()} threads"


def row(name: str, rules: str, part: str, entry: dict[str, Any], best: dict[str, float], k: int) -> dict[str, Any]:
    """What is kept of one measurement."""
    middle = statistics.median(entry["seconds"]) if entry["seconds"] else None
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "torch": torch.__version__,
        "model": name, "composite": rules, "provider": part, "targets": k, "dtype": "float32",
        "seconds_per_target": middle, "spread": max(entry["seconds"]) / min(entry["seconds"]) if middle else None,
        "error": entry["error"],
        "times_faster_than_zennit": best["zennit"] / middle if middle and "zennit" in best else None,
        "share_of_gradient": middle / best["gradient"] if middle else None,
    }  # fmt: skip


def summary(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The better of Zennit's two ways, and the gradient."""
    middle = {name: statistics.median(e["seconds"]) for name, e in found.items() if e["seconds"]}
    peers = [s for name, s in middle.items() if name.startswith("zennit")]
    return {"gradient": middle["gradient"], **({"zennit": min(peers)} if peers else {})}


def small(repeats: int) -> dict[str, Any]:
    """Ten classes of one digit beside one forward pass and one gradient of the same small network."""
    import fastlrp

    model, x = build("small")
    explainer = fastlrp.Explainer(model, "epsilon_plus", example_inputs=x)

    def one_gradient() -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(model(leaf)[0, 3], leaf)

    times: dict[str, list[float]] = {"fastlrp": [], "gradient": []}
    for _ in range(max(repeats, 1) * 200):
        for name, run in (("fastlrp", lambda: explainer(x, "all")), ("gradient", one_gradient)):
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    ours_, theirs = (statistics.median(times[n]) for n in ("fastlrp", "gradient"))
    print(
        f"small network, ten classes of one digit: {ours_ * 1e6:.0f} us; one gradient of one class: "
        f"{theirs * 1e6:.0f} us; ratio {ours_ / theirs:.2f}"
    )
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "torch": torch.__version__,
        "model": "small", "composite": "epsilon_plus", "provider": "fastlrp auto", "targets": 10, "dtype": "float32",
        "seconds": ours_, "times_one_gradient": ours_ / theirs,
    }  # fmt: skip


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vgg16,resnet50")
    parser.add_argument("--composites", default="epsilon_plus,epsilon_gamma_box,epsilon_alpha2_beta1")
    parser.add_argument("--targets", type=int, default=32, help="targets per image")
    parser.add_argument("--backends", default="auto,torch", help="fastlrp backends")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="leave Zennit out")
    parser.add_argument("--no-small", action="store_true", help="leave the small network out")
    parser.add_argument("--output", default=str(RESULTS / "cpu.jsonl"), help="file to append rows to; '' for none")
    options = parser.parse_args()
    rows = [] if options.no_small else [small(options.repeats)]
    for name in filter(None, options.models.split(",")):
        model, x = build(name)
        for rules in options.composites.split(","):
            targets = list(range(0, 1000, 1000 // options.targets))[: options.targets]
            found = measure(
                providers(model, name, rules, options.backends.split(","), not options.no_peers), x, targets,
                options.repeats,
            )  # fmt: skip
            best = summary(found)
            print(f"\n{name}, {rules}, one image, K = {options.targets}, {machine()}")
            for part, entry in found.items():
                rows.append(row(name, rules, part, entry, best, options.targets))
                print(_line(rows[-1]))
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        with open(options.output, "a") as file:
            file.writelines(json.dumps(r) + "\n" for r in rows)


def _line(r: dict[str, Any]) -> str:
    if r["seconds_per_target"] is None:
        return f"  {r['provider']:16} not timed: its output differs by {r['error']:.1e}"
    error = "" if r["error"] is None else f"  differs by {r['error']:.0e}"
    zennit_ratio = r["times_faster_than_zennit"]
    faster = "" if zennit_ratio is None else f"  {zennit_ratio:5.1f} times Zennit's speed"
    return (
        f"  {r['provider']:16} {r['seconds_per_target']:7.4f} s/target (spread {r['spread']:.2f})"
        f"{faster}  {r['share_of_gradient']:5.2f} of a gradient{error}"
    )


if __name__ == "__main__":
    main()
