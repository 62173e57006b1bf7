"""Scaled dot-product attention: the forward pass with its log-sum-exp, and relevance to queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import library as _library  # noqa: F401  (registers torch.ops.fastlrp)
from fastlrp.functional._checks import check_dim, check_float, check_like


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    cap: float = 0.0,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``o = softmax(s) v`` and the log-sum-exp of each row of the scores ``s``.

    ``u = scale q k^T``, soft-capped to ``cap tanh(u / cap)`` if ``cap > 0``; ``s`` is that under the mask. A row that
    attends to nothing has output 0 and log-sum-exp ``-inf``.

    Args:
        query: ``q``, ``(B, H, S, D)``.
        key: ``k``, ``(B, G, T, D)``; G divides H, and head h reads key head ``h // (H / G)``.
        value: ``v``, ``(B, G, T, E)``.
        mask: None, bool (True attends), or numbers to add to the scores; broadcastable to ``(B, H, S, T)``.
        causal: query i attends to the keys ``j <= i`` alone, both counted from the first; with ``mask`` both hold.
        scale: factor of the scores, often ``1 / sqrt(D)``.
        cap: soft cap of the scores, at least 0; 0 is none.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        The output ``(B, H, S, E)``, and the log-sum-exp ``(B, H, S)``, float64 if ``query`` is and else float32.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments; a mask may also be bool, and
            float32 beside float16 and bfloat16.
        ValueError: for shapes or devices that do not fit, a cap below 0.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        query, key, value = torch.randn(3, 1, 2, 5, 4)  # (B, H, S, D)
        output, log_sum = functional.attention_forward(query, key, value, causal=True, scale=0.5)

    Source: Vaswani et al. 2017, eq. 1; the soft cap: Gemma Team 2024, section 2.
    """
    op = "attention_forward"
    _check_scores(op, query, key, mask, cap)
    check_float(op, "value", value)
    _check_value(op, value, key)
    result: tuple[Tensor, Tensor] = torch.ops.fastlrp.attention_forward(
        query, key, value, mask, causal, scale, cap, backend=backend
    )
    return result


def attention_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    cap: float = 0.0,
    share_query: float = 0.25,
    share_key: float = 0.25,
    share_value: float = 0.5,
    epsilon: float = 0.0,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance per unit of query, key and value, from relevance per unit of the output, ``g``.

    With ``P = exp(s - log_sum)`` and ``u = scale q k^T``:

    - ``c_value = share_value P^T g``,
    - ``delta = sum_e g o``; ``c_s = P (g v^T - delta)``, the softmax's own gradient,
    - times ``tanh(u / cap) / (u / cap)`` if ``cap > 0``: relevance passes the soft cap unchanged,
    - times ``u / st(u)``, ``st(u) = u + epsilon sgn(u)``, if ``epsilon > 0``,
    - ``c_query = share_query scale c_s k``, ``c_key = share_key scale c_s^T q``.

    The shares are those of the uniform rule by default. ``c_key`` and ``c_value`` sum over the heads that read them.
    The probabilities are made anew, a tile at a time and once for all targets; scores of all targets are never stored.

    Args:
        relevance: ``g``, ``(B, K, H, S, E)``.
        query, key, value, mask, causal, scale, cap: as in :func:`attention_forward`.
        output, log_sum: what :func:`attention_forward` gives, ``(B, H, S, E)`` and ``(B, H, S)``. An attention sink
            (a score without a key) shows in these two alone.
        share_query, share_key, share_value: what each operand gets.
        epsilon: of the product of queries and keys, absolute, at least 0; 0 is none.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``c_query`` ``(B, K, H, S, D)``, ``c_key`` ``(B, K, G, T, D)``, ``c_value`` ``(B, K, G, T, E)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments; see :func:`attention_forward`.
        ValueError: for shapes or devices that do not fit, a cap or an epsilon below 0.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        query, key, value = torch.randn(3, 1, 2, 5, 4)
        output, log_sum = functional.attention_forward(query, key, value, scale=0.5)
        flow = torch.randn(1, 7, 2, 5, 4)  # of K = 7 targets
        of_query, of_key, of_value = functional.attention_relevance(flow, query, key, value, output, log_sum, scale=0.5)

    Source: Achtibat et al. 2024 (AttnLRP), eq. 7 and proposition 3.1; DESIGN.md, section 3.8.
    """
    op = "attention_relevance"
    _check_scores(op, query, key, mask, cap)
    check_float(op, "value", value)
    _check_value(op, value, key)
    _check_number(op, "epsilon", epsilon)
    (B, H, S, _), E = query.shape, value.shape[3]
    _check_relevance(op, relevance, query, E)
    check_like(op, "output", _given(op, "output", output), "(B, H, S, E)", (B, H, S, E), query, query.dtype)
    _check_log_sum(op, log_sum, query)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.fastlrp.attention_relevance(
        relevance, query, key, value, output, log_sum, mask, causal, scale, cap,
        share_query, share_key, share_value, epsilon, backend=backend,
    )  # fmt: skip
    return result


def attention_value_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    log_sum: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    cap: float = 0.0,
    *,
    backend: str = "auto",
) -> Tensor:
    """``c_value = P^T g``: the probabilities are constants, all relevance is the values'.

    Args:
        relevance: ``g``, ``(B, K, H, S, E)``.
        query, key, log_sum, mask, causal, scale, cap: as in :func:`attention_relevance`.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, G, T, E)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments; see :func:`attention_forward`.
        ValueError: for shapes or devices that do not fit, a cap below 0.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        query, key, value = torch.randn(3, 1, 2, 5, 4)
        _, log_sum = functional.attention_forward(query, key, value, scale=0.5)
        of_value = functional.attention_value_relevance(torch.randn(1, 7, 2, 5, 4), query, key, log_sum, scale=0.5)

    Source: Ali et al. 2022 (CP-LRP), section 3.2.
    """
    op = "attention_value_relevance"
    _check_scores(op, query, key, mask, cap)
    _check_relevance(op, relevance, query, None)
    _check_log_sum(op, log_sum, query)
    result: Tensor = torch.ops.fastlrp.attention_value_relevance(
        relevance, query, key, log_sum, mask, causal, scale, cap, backend=backend
    )
    return result


def attention_up(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    up_query: Tensor | None = None,
    up_key: Tensor | None = None,
    up_value: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    cap: float = 0.0,
    share_query: float = 0.25,
    share_key: float = 0.25,
    share_value: float = 0.5,
    epsilon: float = 0.0,
    *,
    backend: str = "auto",
) -> Tensor:
    """The transpose of :func:`attention_relevance`: what groups bring to the output.

    With ``t_q``, ``t_k``, ``t_v`` what they bring to query, key and value:

    - ``t_s = P scale (share_query t_q k^T + share_key q t_k^T)``, times the shares of cap and epsilon as there,
    - ``t_g = share_value P t_v + t_s v - (sum_t t_s) o``.

    Args:
        query, key, value, output, log_sum, mask, causal, scale, cap: as in :func:`attention_relevance`.
        up_query, up_key, up_value: for K groups, ``(B, K, H, S, D)``, ``(B, K, G, T, D)`` and ``(B, K, G, T, E)``; None
            is zero, at least one is given.
        share_query, share_key, share_value, epsilon: as there; for the transpose of :func:`attention_value_relevance`
            ``share_value=1`` and ``up_value`` alone.
        backend: ``"auto"`` or one of :data:`fastlrp.backends.dispatch.BACKENDS`.

    Returns:
        ``(B, K, H, S, E)``.

    Raises:
        TypeError: for a dtype that is not floating-point or differs between arguments; see :func:`attention_forward`.
        ValueError: for shapes or devices that do not fit, a cap or an epsilon below 0, nothing that is brought.
        BackendError: if the backend cannot run here.

    Example::

        from fastlrp import functional

        query, key, value = torch.randn(3, 1, 2, 5, 4)
        output, log_sum = functional.attention_forward(query, key, value, scale=0.5)
        brought = value.unsqueeze(1) * torch.eye(5).view(1, 5, 1, 5, 1)  # by each of 5 positions
        fixed = query, key, value, output, log_sum
        at_output = functional.attention_up(*fixed, up_value=brought, scale=0.5, share_value=1)
        assert torch.allclose(at_output.sum(1), output, atol=1e-5)

    Source: DESIGN.md, section 3.9.
    """
    op = "attention_up"
    _check_scores(op, query, key, mask, cap)
    check_float(op, "value", value)
    _check_value(op, value, key)
    _check_number(op, "epsilon", epsilon)
    (B, H, S, D), (_, G, T, E) = query.shape, value.shape
    check_like(op, "output", _given(op, "output", output), "(B, H, S, E)", (B, H, S, E), query, query.dtype)
    _check_log_sum(op, log_sum, query)
    brought = [
        ("up_query", up_query, "(B, K, H, S, D)", (H, S, D)), ("up_key", up_key, "(B, K, G, T, D)", (G, T, D)),
        ("up_value", up_value, "(B, K, G, T, E)", (G, T, E)),
    ]  # fmt: skip
    given = [t for _, t, *_ in brought if t is not None]
    if not given:
        raise ValueError(f"{op}: up_query, up_key or up_value must be given, got None for all; None stands for zero")
    check_dim(op, "what groups bring", given[0], "(B, K, …)", 5, 5)
    for name, t, layout, rest in brought:
        check_like(op, name, t, layout, (B, given[0].shape[1], *rest), query, query.dtype)
    result: Tensor = torch.ops.fastlrp.attention_up(
        query, key, value, output, log_sum, up_query, up_key, up_value, mask, causal, scale, cap,
        share_query, share_key, share_value, epsilon, backend=backend,
    )  # fmt: skip
    return result


def _check_scores(op: str, query: Tensor, key: Tensor, mask: Tensor | None, cap: float) -> None:
    check_float(op, "query", query)
    check_dim(op, "query", query, "(B, H, S, D)", 4, 4)
    check_float(op, "key", key)
    check_dim(op, "key", key, "(B, G, T, D)", 4, 4)
    (B, H, S, D), (_, G, T, _) = query.shape, key.shape
    check_like(op, "key", key, "(B, G, T, D)", (B, G, T, D), query, query.dtype)
    if G == 0 or H % G != 0:
        raise ValueError(
            f"{op}: the number of heads of query must be a multiple of that of key, got {H} and {G}; query is "
            "(B, H, S, D), key is (B, G, T, D)"
        )
    _check_number(op, "cap", cap)
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: mask must be a tensor or None, got {type(mask).__name__}")
    if mask.dtype not in (torch.bool, query.dtype, torch.float32):
        raise TypeError(
            f"{op}: mask must be bool (True attends), {query.dtype} or float32 (added to the scores), got {mask.dtype}"
        )
    whole = (B, H, S, T)
    if mask.dim() > 4 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], whole[::-1], strict=False)):
        raise ValueError(
            f"{op}: mask must broadcast to (B, H, S, T) = {whole}, got {tuple(mask.shape)}; a mask of keys (B, T) is "
            "mask[:, None, None]"
        )
    if mask.device != query.device:
        raise ValueError(f"{op}: mask must be on {query.device}, got {mask.device}; move it with .to({query.device})")


def _check_value(op: str, value: Tensor, key: Tensor) -> None:
    check_dim(op, "value", value, "(B, G, T, E)", 4, 4)
    check_like(op, "value", value, "(B, G, T, E)", (*key.shape[:3], value.shape[3]), key, key.dtype)


def _check_relevance(op: str, relevance: Tensor, query: Tensor, size: int | None) -> None:
    check_float(op, "relevance", relevance)
    check_dim(op, "relevance", relevance, "(B, K, H, S, E)", 5, 5)
    (B, H, S, _), (_, K, *_, E) = query.shape, relevance.shape
    shape = (B, K, H, S, E if size is None else size)
    check_like(op, "relevance", relevance, "(B, K, H, S, E)", shape, query, query.dtype)


def _check_log_sum(op: str, log_sum: Tensor, query: Tensor) -> None:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    check_like(op, "log_sum", _given(op, "log_sum", log_sum), "(B, H, S)", query.shape[:3], query, dtype)


def _given(op: str, name: str, value: Tensor) -> Tensor:
    if value is None:
        raise TypeError(f"{op}: {name} must be a tensor, got None; attention_forward makes it")
    return value


def _check_number(op: str, name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{op}: {name} must be at least 0 (0 is none), got {value}")
