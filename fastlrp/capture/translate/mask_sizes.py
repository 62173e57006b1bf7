"""How many entries a mask of the model's own takes: a number that export leaves open, and which the mask says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from fastlrp.capture.translate.module_paths import WRAPPED

Counted = list[tuple[Tensor, int]]


def settle_mask_sizes(program: torch.export.ExportedProgram, model: nn.Module) -> tuple[dict[Any, int], Counted]:
    """For ``x[:, mask]`` with a buffer ``mask``: the symbols of such numbers and what they are; masks and numbers."""
    known: dict[Any, int] = {}
    counted: Counted = []
    constants: dict[str, Tensor] | None = None
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.index.Tensor:
            continue
        masks = [index for index in node.args[1] if index is not None]
        if len(masks) != 1 or masks[0].op != "placeholder":
            continue
        constants = _constants(program, model) if constants is None else constants
        mask = constants.get(masks[0].name)
        if mask is not None and mask.dtype in (torch.bool, torch.uint8):
            counted.append((mask, count_of(mask)))
            symbols = (n.node.expr for n in node.meta["val"].shape if isinstance(n, torch.SymInt))
            known |= {symbol: counted[-1][1] for symbol in symbols if str(symbol).startswith("u")}
    return known, counted


def count_of(mask: Tensor) -> int:
    """How many entries it takes."""
    return int((mask != 0).sum())


def settled(size: Any, known: dict[Any, int]) -> Any:
    """A size as an expression, with numbers for the symbols that are known."""
    expression = size.node.expr
    return expression.subs(known) if known and hasattr(expression, "subs") else expression


def _constants(program: torch.export.ExportedProgram, model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the model's own by the name of their placeholder."""
    found: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
            owner, _, key = spec.target.removeprefix(f"{WRAPPED}.").rpartition(".")
            found[spec.arg.name] = getattr(model.get_submodule(owner), key)
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            found[spec.arg.name] = program.constants[str(spec.target)]
    return found
