"""Names of ATen operations that are no matter of one kind: other spellings, what is read of arguments, chance."""

from __future__ import annotations

from typing import Any

REGISTERED: dict[str, Any] = {}
"""Rules of users by operation: such an operation is not written out as others while a model is captured."""

ALIASES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "clip": "clamp", "special_expit": "sigmoid", "special_softmax": "softmax", "special_log_softmax": "log_softmax",
}  # fmt: skip
"""Other names of the same operations."""


def plain_name(operation: str) -> str:
    """An operation's name as graphs have it: ``"amax"`` for ATen's own, with the namespace for any other.

    Args:
        operation: ``"amax"``, ``"aten::amax"``, ``"aten.amax.default"``, ``"mylib::amax"``, ``"mylib::amax.default"``.
    """
    namespace, colons, name = operation.rpartition("::")
    if colons:
        name = name.split(".")[0]
        return ALIASES.get(name, name) if namespace == "aten" else f"{namespace}::{name}"
    name = operation.removeprefix("aten.").split(".")[0]
    return ALIASES.get(name, name)


_SIZES_ONLY = (
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided zero fill copy "
    "sym_size sym_numel sym_stride numel size is_floating_point"
)

UNREAD: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_SIZES_ONLY.split(), (0,)),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as", "to"), (1,)),
}
"""Arguments of which an operation reads sizes or dtype only, by position."""

_RANDOM = (
    "rand rand_like randn randn_like randint randint_like randperm bernoulli multinomial normal uniform exponential "
    "poisson cauchy geometric log_normal"
)

RANDOM = frozenset(_RANDOM.split())
"""Operations that draw random numbers."""
