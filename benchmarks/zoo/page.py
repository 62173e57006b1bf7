"""``docs/models.md``: what was measured, by group and by cause; only sentences on causes are typed by hand."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.zoo.sweep import Row, judgement, reason

Key = tuple[str, str]

_TITLE = """# Models: what is explained

Public architectures with random weights, on small images or a few tokens, in float64 (float32 where a model holds
tensors of its own in it). Written by `python -m benchmarks.zoo --write` from `benchmarks/results/zoo/sweep.jsonl`;
`python -m benchmarks.zoo --only 'timm files/*' --again` measures again (`pip install fastlrp[zoo]`; no weights are
loaded). A model counts as **explained** if all of these hold:

- it is captured and explained by `epsilon_plus`, by `attnlrp` if it has attention, or by `mamba_lrp` if it has a
  selective state space; the relevance is finite and not zero everywhere;
- the output of the captured graph is the model's, and relevance under `gradient` is what autograd computes (of ids:
  gradient times rows), to 1e-5 in float64, 1e-3 where a model computes parts of itself in float32, and 1e-2 in float32
  (2-norm, relative);
- every layer agrees with the textbook (`explainer.verify`), and a sample alone gets what it gets in a batch;
  a graph's nodes get the same under other numbers.

"""

_SENTENCES = (
    (
        r"mixes samples|another result in a batch",
        "The output of a sample depends on the other samples of the batch, so that its relevance would, too.",
    ),
    (
        r"data-dependent|branches on",
        "The forward pass branches on data, or has sizes that depend on data: there is no one graph. Of detectors "
        "backbone and head are explained, see [boxes of a detector](targets.md#boxes-of-a-detector).",
    ),
    (
        r"no rule for operation",
        "No rule is known for the operation: `fastlrp.register_rule`, an entry in the composite or "
        '`unsupported="gradient"` give it one, see [a rule of your own](rules.md#a-rule-of-your-own).',
    ),
    (r"batch axis", "The batch axis is moved or folded in a way that could not be written for each sample alone."),
    (r"complex", "Relevance is defined for real numbers."),
    (r"^more than|memory", "A limit of the sweep ended it; nothing is known beyond the step that is named."),
)


def explained(row: Row) -> bool:
    """Whether everything holds that the page asks for."""
    return judgement(row) == "explained"


def cause(row: Row) -> str:
    """The reason, without what differs from model to model."""
    text = reason(row).split("\n")[0]
    text = re.sub(r"( in| of)? module '[^']*'", "", text)
    text = re.sub(r"\([^()]*\d[^()]*\)|'[\w.]+'|\d+(\.\d+)?(e[+-]\d+)?", "…", text)
    sentence = re.split(r"(?<=[^…])[.;:] ", text)
    return " ".join(sentence[:2])[:160].replace("|", "/").replace("<", "‹").replace(">", "›").strip()


def write(path: Path, rows: dict[Key, Row], known: list[Key]) -> None:
    """The page from the results; a model that has none is counted as not measured."""
    path.write_text(_TITLE + _groups(rows, known) + _causes(rows) + _models(rows))


def _table(heads: tuple[str, ...], lines: list[tuple[Any, ...]]) -> str:
    all_lines = [heads, ("---",) * len(heads), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in all_lines)


def _groups(rows: dict[Key, Row], known: list[Key]) -> str:
    heads = (
        "group", "models", "explained", "captured", "wrong", "refused", "failed or ended", "capture, s",
        "explanation, s",
    )  # fmt: skip
    lines = []
    for group in dict.fromkeys(group for group, _ in [*known, *rows]):
        of_group = [row for key, row in rows.items() if key[0] == group]
        missing = sum(key[0] == group and key not in rows for key in known)
        verdicts = [judgement(row) for row in of_group]
        count = {word: verdicts.count(word) for word in ("explained", "wrong", "refused", "failed", "ended")}
        share = f"{count['explained']} ({100 * count['explained'] / len(of_group):.0f} %)" if of_group else "–"
        models = f"{len(of_group)}" + (f" ({missing} more not measured)" if missing else "")
        captured = sum(bool(row.get("captured")) for row in of_group)
        seconds = (_median(of_group, f"{name}_seconds") for name in ("capture", "explain"))
        others = count["wrong"], count["refused"], count["failed"] + count["ended"]
        lines.append((group, models, share, captured, *others, *seconds))
    return _table(heads, lines) + (
        "\nSeconds are medians of the processor's time on one core: capture with lowering, and two targets for two "
        "samples.\n"
    )


def _median(rows: list[Row], name: str) -> str:
    found = [row[name] for row in rows if name in row]
    return f"{statistics.median(found):.2f}" if found else "–"


def _causes(rows: dict[Key, Row]) -> str:
    by_cause: dict[str, list[Row]] = defaultdict(list)
    for row in rows.values():
        if not explained(row):
            by_cause[f"{judgement(row)}: {cause(row)}"].append(row)
    if not by_cause:
        return "\n"
    lines = [
        (text, ", ".join(f"`{row['name']}`" for row in of_cause))
        for text, of_cause in sorted(by_cause.items(), key=lambda item: -len(item[1]))
    ]
    reasons = [reason(row) for row in rows.values() if not explained(row)]
    said = [f"- {text}" for pattern, text in _SENTENCES if any(re.search(pattern, r) for r in reasons)]
    table = _table(("cause", "models"), lines)
    return "\n## What is not explained, by cause\n\n" + table + "\n" + "\n".join(said) + "\n"


def _models(rows: dict[Key, Row]) -> str:
    text = "\n## Model by model\n"
    for group in dict.fromkeys(key[0] for key in rows):
        text += f"\n### {group[0].upper()}{group[1:]}\n\n"
        of_group = (row for key, row in rows.items() if key[0] == group)
        lines = [_line(row) for row in sorted(of_group, key=lambda row: str(row["name"]).lower())]
        text += _table(("model", "input", "operations", "composite", "capture, s", "explanation, s", ""), lines)
    return text


def _line(row: Row) -> tuple[Any, ...]:
    shapes = ", ".join("×".join(map(str, shape)) for shape in row.get("input", []))
    seconds = [f"{row[name]:.2f}" if name in row else "" for name in ("capture_seconds", "explain_seconds")]
    verdict = "" if explained(row) else judgement(row)
    return f"`{row['name']}`", shapes, row.get("nodes", ""), row.get("composite", ""), *seconds, verdict
