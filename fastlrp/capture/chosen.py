"""The output to explain as a function of what the model returns, captured together with the model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, nn

from fastlrp.capture import structure as structures
from fastlrp.capture.identity import Itself
from fastlrp.errors import CaptureError

Output = str | int | Callable[[Any], Any] | None
"""Which output is explained: its name, its position, a function of what the model returns, or None for the only one."""


def output_key(output: Output) -> Hashable:
    """An output as part of a key: functions are told apart by identity and kept alive, names by what they say."""
    return Itself(output) if callable(output) else (type(output), output)


class _Note:
    trouble: Exception | None = None


class Chooser(nn.Module):
    """Calls the user's function on what the model returned and finds the one tensor in its result.

    It is a module so that the operations of the function are seen to stand in it. The function stands in a list: a
    module's own parameters are the model's matter, not the capture's.
    """

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        super().__init__()
        self._choose = [choose]
        # Outside the module's own state, which torch.export puts back after tracing.
        self._note = _Note()

    @property
    def trouble(self) -> Exception | None:
        """What went wrong inside the function at the latest call."""
        return self._note.trouble

    def forward(self, returned: Any) -> Tensor:
        self._note.trouble = None
        try:
            found: list[Tensor] = []
            kept = structures.flatten(self._choose[0](returned), found)
            if len(found) != 1:
                raise _WrongCountError(_wrong_count(kept, found))
        except Exception as error:
            self._note.trouble = error
            raise
        return found[0]

    def explained(self) -> Exception | None:
        """:attr:`trouble` as an error for the user; None if there was none."""
        error = self.trouble
        if error is None:
            return None
        if isinstance(error, _WrongCountError):
            return ValueError(str(error))
        reason = str(error).strip().split("\n\n")[0][:400]
        return CaptureError(
            f"the function given as output= failed on what the model returned: {type(error).__name__}: {reason}. It is "
            "called with the model's own return value while torch.export traces it: use tensor operations, with no "
            "`if` or loop over the values of a tensor"
        )


class _WrongCountError(ValueError):
    pass


def _wrong_count(kept: Any, found: list[Tensor]) -> str:
    if not found:
        return (
            f"the function given as output= returned {type(kept).__name__} without a tensor: return the one tensor to "
            "explain, for instance lambda out: out.logits[:, -1]"
        )
    names = ", ".join(structures.leaf_names(kept))
    return (
        f"the function given as output= returned {len(found)} tensors ({names}): return the one tensor to explain, for "
        "instance lambda out: out.logits[:, -1]"
    )
