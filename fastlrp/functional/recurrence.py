"""Relevance through the steps of a recurrent layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like

_OP = "recurrence_relevance"


def recurrence_relevance(
    relevance: Tensor,
    final: Tensor | None,
    weight: Tensor,
    entry: Tensor,
    scale: Tensor | None = None,
    carry: Tensor | None = None,
    gates: Tensor | None = None,
    output_entry: Tensor | None = None,
    output_scale: Tensor | None = None,
    reset: Tensor | None = None,
    projection: Tensor | None = None,
    input_weight: Tensor | None = None,
    spread: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What flows to the gates' sums of one layer and direction, for a block of targets, last step first.

    With ``a`` what the later step sent to the hidden state and ``d`` what flows in a unit's memory, all products of two
    vectors entry by entry:

        d_t = entry_t relevance_t + scale_t a_t + carry_{t+1} d_{t+1},    carry_T d_T = final, a_{T-1} = 0
        s_t = (gates_t,1 d_t, …, gates_t,G d_t, output_entry_t relevance_t + output_scale_t a_t)
        a_{t-1} = weight^T s'_t,   s' is s with its last block times reset_t

    A projected state (``proj_size``) has ``P`` entries and ``v_t = projection^T (entry_t relevance_t + scale_t a_t)``:
    then ``d_t = output_scale_t[0] v_t + …`` and the output's block is ``output_scale_t[1] v_t``.

    With ``input_weight`` the first result is ``input_weight^T s_t``. With ``spread``, for one block of gates, parts of
    relevance go to all lower units alike: ``e_t = spread_t[0] . d_t`` is added to ``carry_t d_t``, ``spread_t[1] e_t``
    to ``s_t``, and ``g_t = spread_t[2] . s_t`` to ``relevance_{t-1}``; with a projection also
    ``spread_t[3] . (entry_t relevance_t + scale_t a_t)``, of its first ``P`` entries, to ``d_t``.

    Args:
        relevance: what flows at the hidden states, ``(B, K, T, P)``; ``P = H`` without a projection.
        final: what flows into the memory after the last step, ``(B, K, H)``; None is 0.
        weight: the recurrent weight of the sums that get relevance, ``(J H, P)`` for ``J`` blocks: the ``G`` of the
            gates and that of the output.
        entry: ``(B, T, P)``.
        scale: ``(B, T, P)``; None is 1.
        carry: ``(B, T, H)``; None for a layer without a memory.
        gates: ``(B, T, G, H)``; None is one block of 1.
        output_entry: ``(B, T, H)``; None for no output block, and with a projection.
        output_scale: ``(B, T, H)`` with ``output_entry``; with a projection ``(B, T, O, H)``, where ``O`` is 2 with an
            output block and else 1; else None.
        reset: ``(B, T, H)``; None is 1.
        projection: ``(P, H)``; None for none.
        input_weight: ``(J H, C)``; None to get ``s``.
        spread: ``(B, T, 3, H)``, with a projection ``(B, T, 4, H)``; None for none.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``s (B, K, T, J H)`` or ``(B, K, T, C)``, ``a_{-1} (B, K, P)`` for the first hidden state, ``carry_0 d_0 (B, K,
        H)`` for the first memory and ``g (B, K, T)``, or ``(0,)`` without ``spread``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments.
        ValueError: for shapes or devices that do not fit, or arguments that do not go together.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        weight, entry = torch.randn(8, 8), torch.rand(2, 5, 8)  # a plain recurrent layer of 8 units, 5 steps
        found = functional.recurrence_relevance(torch.rand(2, 7, 5, 8), None, weight, entry)
        at_sums, at_first, of_memory, _ = found

    Source: Arras et al. 2017, section 3.2, and Arras et al. 2019, section 2.2, written for relevance per unit.
    """
    check_float(_OP, "relevance", relevance)
    check_dim(_OP, "relevance", relevance, "(B, K, T, P)", 4, 4)
    check_float(_OP, "weight", weight)
    B, K, T, P = relevance.shape
    if T == 0:
        raise ValueError(f"{_OP}: relevance must have at least one step T, got {tuple(relevance.shape)}")
    if projection is not None:
        check_dim(_OP, "projection", projection, "(P, H)", 2, 2)
    if gates is not None:
        check_dim(_OP, "gates", gates, "(B, T, G, H)", 4, 4)
    H = P if projection is None else projection.shape[1]
    G = 1 if gates is None else gates.shape[2]
    if projection is None:
        if (output_entry is None) != (output_scale is None):
            raise ValueError(f"{_OP}: output_entry and output_scale must be given together, or neither")
        J, output_shape = G + (output_scale is not None), (B, T, H)
    else:
        if output_entry is not None:
            raise ValueError(
                f"{_OP}: output_entry must be None with a projection, whose result output_scale multiplies"
            )
        if output_scale is None:
            raise ValueError(f"{_OP}: output_scale (B, T, O, H) must be given with a projection, got None")
        check_dim(_OP, "output_scale", output_scale, "(B, T, O, H)", 4, 4)
        O = output_scale.shape[2]
        if O not in (1, 2):
            raise ValueError(f"{_OP}: output_scale must have one or two blocks (B, T, O, H), got O = {O}")
        J, output_shape = G + O - 1, (B, T, O, H)  # type: ignore[assignment]
    if spread is not None and J != 1:
        raise ValueError(f"{_OP}: spread must be None where there are {J} blocks of gates and output")
    if input_weight is not None:
        check_dim(_OP, "input_weight", input_weight, "(J H, C)", 2, 2)
    C = 0 if input_weight is None else input_weight.shape[1]
    dtype = relevance.dtype
    for name, tensor, layout, shape in (
        ("final", final, "(B, K, H)", (B, K, H)),
        ("weight", weight, "(J H, P)", (J * H, P)),
        ("entry", entry, "(B, T, P)", (B, T, P)),
        ("scale", scale, "(B, T, P)", (B, T, P)),
        ("carry", carry, "(B, T, H)", (B, T, H)),
        ("gates", gates, "(B, T, G, H)", (B, T, G, H)),
        ("output_entry", output_entry, "(B, T, H)", (B, T, H)),
        ("output_scale", output_scale, "its own", output_shape),
        ("reset", reset, "(B, T, H)", (B, T, H)),
        ("projection", projection, "(P, H)", (P, H)),
        ("input_weight", input_weight, "(J H, C)", (J * H, C)),
        ("spread", spread, "its own", (B, T, 3 if projection is None else 4, H)),
    ):
        check_like(_OP, name, tensor, layout, shape, relevance, dtype)
    s, a, memory, to_all = torch.ops.fastlrp.recurrence_relevance(
        relevance, final, weight, entry, scale, carry, gates, output_entry, output_scale, reset, projection,
        input_weight, spread, backend=backend,
    )  # fmt: skip
    return s, a, memory, to_all
