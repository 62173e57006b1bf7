"""``LRP`` with Captum's interface."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.compat.captum.composite import ModuleRules
from fastlrp.compat.captum.explainer import ByModules, forget_graphs
from fastlrp.compat.captum.kinship import Kin, as_captum_calls_it, gradients
from fastlrp.compat.captum.layers import assignment, check_rules, forget_rules, named_layers
from fastlrp.compat.captum.rules import Asked
from fastlrp.compat.captum.targets import position, positions
from fastlrp.run.record import ForwardRecord

_KEPT = 4

Pick = Callable[[ForwardRecord, Tensor], list[list[Tensor]]]
"""What to read off a record: for each thing asked for a list of relevances ``(B, K, …)``."""


class LRP(Kin):
    """Layer-wise relevance propagation, called as ``captum.attr.LRP`` is.

    Every module without sub-modules is a layer. Its rule is its attribute ``rule``, or else the default of its type:
    ``EpsilonRule(1e-9)`` for convolutions, linear layers, batch norms and pools, none for activations, through which
    relevance passes. What is computed between layers is the plain gradient.

    Args:
        model: in evaluation mode if it has dropout or batch norms. It is not modified.
        keep_rules: leave the attributes ``rule`` where they are. By default each attribution deletes them from all
            layers, as Captum 0.9 does.
        output: which output to explain, by name or position, if the model returns several.
        backend, max_memory: see :class:`fastlrp.Explainer`.

    Raises:
        TypeError: if a module's attribute ``rule`` is not a rule.

    Example::

        from fastlrp.compat.captum import LRP

        relevance = LRP(model).attribute(x, target=3)  # of x's shape
    """

    _captum_name = "LRP"

    def __init__(
        self,
        model: nn.Module,
        *,
        keep_rules: bool = False,
        output: str | int | None = None,
        backend: str = "auto",
        max_memory: int | str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_rules(model)
        self.model, self.keep_rules = model, keep_rules
        self.forward_func, self.gradient_func = model, gradients
        self._options: dict[str, Any] = {"output": output, "backend": backend, "max_memory": max_memory}
        self._explainers: OrderedDict[Any, ByModules] = OrderedDict()

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    @as_captum_calls_it
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
        *,
        targets: Any = None,
    ) -> Any:
        """Relevance of the inputs for one target, or for many at once.

        Args:
            inputs: a tensor ``(B, …)`` or a tuple of them, the model's first arguments.
            target: one entry of each sample's output, see :func:`fastlrp.compat.captum.targets.position`.
            additional_forward_args: further arguments of the model, of which there is no attribution.
            return_convergence_delta: also return output minus sum of the attributions.
            verbose: print the rule of each layer.
            targets: instead of ``target``: K entries, see :func:`fastlrp.compat.captum.targets.positions`.

        Returns:
            a tensor or a tuple as ``inputs`` is, each of its input's shape, with ``targets`` ``(B, K, …)``; with
            ``return_convergence_delta`` a pair of that and the delta, ``(B,)`` or ``(B, K)``.

        Raises:
            TypeError: for a layer without rule and default, and for rules that cannot be read; both name the layer.
            TypeError, ValueError, IndexError: for inputs and targets that do not fit.
            RuntimeError: whatever capture says, see ``docs/errors.md``.
        """
        given = as_tuple(inputs)

        def pick(record: ForwardRecord, asked: Tensor) -> list[list[Tensor]]:
            found = record.relevance(asked)
            return [[_or_zero(r, x, asked.shape[1]) for r, x in zip(found, given, strict=False)]]

        (found,), scores = self._explained(given, target, targets, additional_forward_args, verbose, pick)
        many = targets is not None
        shaped = tuple(one_or_many(r, many) for r in found)
        result = shaped if isinstance(inputs, tuple) else shaped[0]
        return (result, one_or_many(delta(found, scores), many)) if return_convergence_delta else result

    def attribute_future(self) -> None:
        """Captum has none for LRP either."""
        raise NotImplementedError("attribute_future is not implemented for LRP")

    def has_convergence_delta(self) -> bool:
        return True

    def compute_convergence_delta(self, attributions: Tensor | tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What was not attributed: output minus sum of the attributions, for each sample.

        Args:
            attributions: a tensor ``(B, …)`` or a tuple of them. output: the explained scores, B of them.

        Returns:
            ``(B,)``.
        """
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        return delta([part.unsqueeze(1) for part in parts], output.reshape(-1, 1))[:, 0]

    def refresh(self) -> None:
        """Capture again at the next call: single entries of large weights that were written may be noticed late."""
        self._explainers.clear()
        forget_graphs(self.model)

    # Doing

    def _explained(
        self, given: tuple[Tensor, ...], target: Any, targets: Any, extra: Any, verbose: bool, pick: Pick
    ) -> tuple[list[list[Tensor]], Tensor]:
        """What ``pick`` reads off one forward pass, and the explained scores ``(B, K)``."""
        if target is not None and targets is not None:
            raise ValueError("give target for one, or targets for many in one call, not both")
        asked = assignment(self.model)
        if verbose:
            for path, module in named_layers(self.model):
                if asked[path].name not in ("pass", "carry", "none"):
                    print(f"Applied {asked[path]} on layer {module}")
        try:
            with self._explainer(asked).forward((*given, *_extra(extra, given))) as record:
                output = record.scores
                places = position(output, target).unsqueeze(1) if targets is None else positions(output, targets)
                scores = output.reshape(len(output), math.prod(output.shape[1:])).gather(1, places)
                return pick(record, _initial(output, places, scores)), scores
        finally:
            if not self.keep_rules:
                forget_rules(self.model)

    def _explainer(self, asked: dict[str, Asked]) -> ByModules:
        """The explainer of an assignment of rules; those of the latest few are kept."""
        modules = dict(named_layers(self.model))
        key = (*asked.items(), *map(id, modules.values()))
        if key not in self._explainers:
            composite = ModuleRules((), name="captum", asked=asked, modules=modules)
            self._explainers[key] = ByModules(self.model, composite, **self._options)
        self._explainers.move_to_end(key)
        while len(self._explainers) > _KEPT:
            self._explainers.popitem(last=False)
        return self._explainers[key]


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    for i, x in enumerate(given):
        name = f"inputs[{i}]" if isinstance(inputs, tuple) else "inputs"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} is {x.dtype}, which has no relevance: pass it in additional_forward_args")
    return given


def _extra(extra: Any, given: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """The model's further arguments. A tensor without axes is a number."""
    listed = () if extra is None else extra if isinstance(extra, tuple) else (extra,)
    for i, item in enumerate(listed):
        if isinstance(item, Tensor) and item.dim() and len(item) != len(given[0]):
            raise ValueError(
                f"additional_forward_args[{i}] is a tensor {tuple(item.shape)}; its first axis must be the batch, of "
                f"{len(given[0])} samples. Keep other tensors in the model, as a buffer"
            )
    return tuple(item.item() if isinstance(item, Tensor) and not item.dim() else item for item in listed)


def _or_zero(relevance: Tensor | None, x: Tensor, count: int) -> Tensor:
    """An input that the explained output does not depend on has none."""
    return x.new_zeros(len(x), count, *x.shape[1:]) if relevance is None else relevance


def _initial(output: Tensor, places: Tensor, scores: Tensor) -> Tensor:
    """Targets as a record takes them: classes ``(B, K)``, or initial relevance for an output with more axes."""
    if output.dim() <= 2:
        return places
    zero = output.new_zeros(*places.shape, math.prod(output.shape[1:]))
    return zero.scatter_(2, places.unsqueeze(2), scores.unsqueeze(2)).view(*places.shape, *output.shape[1:])


def delta(parts: list[Tensor], scores: Tensor) -> Tensor:
    """``(B, K)``: scores minus the sum of relevances ``(B, K, …)``."""
    return scores - torch.stack([part.unsqueeze(2).flatten(2).sum(2) for part in parts]).sum(0)


def one_or_many(relevance: Tensor, many: bool) -> Tensor:
    """``(B, K, …)``, or ``(B, …)`` for the one target."""
    return relevance if many else relevance[:, 0]
