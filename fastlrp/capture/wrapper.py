"""The model as torch.export is given it: whatever it returns is a flat list of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastlrp.capture import structure as structures
from fastlrp.capture.chosen import Chooser, Output
from fastlrp.capture.trace.attributes import Before
from fastlrp.capture.trace.methods import MethodsFollowed
from fastlrp.eager import device_of_caller


class Note:
    """What a trace tells of itself.

    Attributes:
        structure: what the model returned, with leaves numbered. after: called when its forward pass has run.
        packs: whether it packs sequences. counts: whether it asks how many rows these have.
        changed: names of attributes of modules that its forward pass has set, or written into.
    """

    structure: Any = None
    after: Callable[[], None] | None = None
    packs: bool = False
    counts: bool = False
    changed: Sequence[str] = ()


class Wrapper(nn.Module):
    """Calls the model and returns its tensors as a flat list, whatever it packs them in.

    With a function of what the model returns (``output``) what that gives is the last tensor of the list.
    """

    def __init__(self, model: nn.Module, output: Output = None) -> None:
        super().__init__()
        self.model = model
        self.chosen_output = Chooser(output) if callable(output) else None
        # Outside the module's own state, which torch.export puts back after tracing.
        self.note = Note()
        self._defaults = _without_cache(model)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        found: list[Tensor] = []
        before = Before(self.model)
        with device_of_caller(), MethodsFollowed():
            returned = self.model(*args, **{**self._defaults, **kwargs})
        self.note.changed = before.changes()
        self.note.structure = structures.flatten(returned, found)
        if self.note.after is not None:
            self.note.after()
        if self.chosen_output is not None:
            with device_of_caller(), MethodsFollowed():
                found.append(self.chosen_output(returned))
        return found


def _without_cache(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments that keep a language model from returning keys and values for the next token's pass."""
    parameter = inspect.signature(model.forward).parameters.get("use_cache")
    optional = parameter is not None and parameter.kind is inspect.Parameter.KEYWORD_ONLY
    optional = optional or (parameter is not None and parameter.default in (None, True))
    return {"use_cache": False} if optional else {}


def choose_output(structure: Any, output: str | int | None) -> int:
    """The position of the output to explain among the tensors that the model returns.

    Raises:
        ValueError: if it does not name one of them, or names none of several.
    """
    names = structures.leaf_names(structure)
    if not names:
        raise ValueError(
            "the model returns no tensor, beside what may be numbers, text and None: return the scores, as a tensor or "
            "in a tuple, list, dict or dataclass"
        )
    if output is None:
        if len(names) == 1:
            return 0
        raise ValueError(
            f"the model returns {len(names)} tensors ({', '.join(names)}): name one with output=, or give a "
            "function of what the model returns, output=lambda out: …"
        )
    if isinstance(output, int) and not isinstance(output, bool) and 0 <= output < len(names):
        return output
    if output in names:
        return names.index(str(output))
    raise ValueError(f"output={output!r} is not one of the model's outputs: {', '.join(names) or 'a bare tensor'}")
