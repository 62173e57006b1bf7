"""Relevance of a signal's frequencies, for models that read the signal itself.

A signal is the inverse Fourier transform of its spectrum, ``x = A z`` with ``z`` the real and imaginary parts, a linear
layer that the model may be thought to begin with. LRP through that layer shares the relevance of every sample among the
frequencies that make it: ``R_z = z * A^T (R_x / st(x))``. With a window it is the short-time transform and its inverse,
and relevance is of times and frequencies. Nothing is trained, and the model stays as it is.

Source: Vielhaben, Lapuschkin, Montavon and Samek 2024, virtual inspection layers (DFT-LRP and STDFT-LRP).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.stabilizer import Stabilizer

__all__ = ["FromFrequencies", "in_frequencies", "spectrum"]


def spectrum(x: Tensor, window: Tensor | int | None = None, hop: int | None = None) -> Tensor:
    """Real and imaginary parts of a signal's frequencies from 0 to the half of its rate.

    Args:
        x: ``(…, T)``. window: a window ``(n)``, or n for a Hann window of that length; None for the whole signal.
        hop: from window to window; a quarter of the window if None.

    Returns:
        ``(…, F, 2)``, of windows ``(…, F, N, 2)``, with ``F`` half of T or n and 1.

    Raises:
        ValueError: for an integer signal, a window that is longer than it, or a hop that leaves gaps. TypeError: for
            another window.

    Example::

        signal = torch.randn(2, 1, 64)
        assert fastlrp.frequencies.spectrum(signal).shape == (2, 1, 33, 2)
        assert fastlrp.frequencies.spectrum(signal, window=16).shape == (2, 1, 9, 17, 2)
    """
    return _transform(x, window, hop).forward(x)


def in_frequencies(
    x: Tensor,
    relevance: Tensor,
    window: Tensor | int | None = None,
    hop: int | None = None,
    stabilizer: float | Stabilizer = 1e-6,
    parts: bool = False,
) -> Tensor:
    """The relevance of a signal's samples as relevance of its frequencies.

    ``R_k = z_k * sum_n A_nk R_n / st(x_n)``; the sum over frequencies is the sum over samples, less what the stabilizer
    keeps. A sample that is 0 has no relevance to share: where the first layer's rule gives it some (flat, w-square, a
    box), that is lost. Rules by input times weight give none.

    Args:
        x: the signal ``(B, …, T)``, time along the last axis. relevance: ``(B, K, …, T)`` or ``(B, …, T)``.
        window, hop: as for :func:`spectrum`.
        stabilizer: of the samples.
        parts: real and imaginary parts apart, ``(…, 2)``, and not their sum.

    Returns:
        ``(B, K, …, F)``, of windows ``(B, K, …, F, N)``; without K as ``relevance``.

    Raises:
        ValueError: for shapes that do not fit, and as :func:`spectrum`. TypeError: as :func:`spectrum`.

    Example::

        signal = torch.randn(2, 1, 64)
        network = nn.Sequential(nn.Conv1d(1, 4, 9), nn.ReLU(), nn.Flatten(), nn.Linear(224, 3)).eval()
        samples = fastlrp.explain(network, signal, "all", "epsilon")  # (2, 3, 1, 64)
        found = fastlrp.frequencies.in_frequencies(signal, samples)  # (2, 3, 1, 33)
    """
    transform = _transform(x, window, hop)
    several = relevance.dim() == x.dim() + 1
    wide = relevance if several else relevance.unsqueeze(1)
    if wide.dim() != x.dim() + 1 or wide.shape[0] != x.shape[0] or wide.shape[2:] != x.shape[1:]:
        raise ValueError(
            f"relevance must be (B, K, …, T) or (B, …, T) of a signal {tuple(x.shape)}, got {tuple(relevance.shape)}"
        )
    if not wide.is_floating_point():
        raise ValueError(f"relevance must be floats, got {wide.dtype}")
    divisor = Stabilizer.ensure(stabilizer)(x).unsqueeze(1)
    quotient = torch.where(divisor == 0, 0.0, wide / torch.where(divisor == 0, 1.0, divisor))
    found = transform.forward(x).unsqueeze(1) * transform.transposed(quotient)
    found = found if several else found.squeeze(1)
    return found if parts else found.sum(-1)


class FromFrequencies(nn.Module):
    """A model that reads a spectrum: the inverse transform, then a model of the signal.

    An explainer of it gives relevance of real and imaginary parts in one pass, with all that explainers have (groups of
    frequencies, streams, ``verify``), and without a division by samples where the model's first rule needs none.

    Args:
        model: takes the signal ``(B, …, T)``. length: T. window, hop: as for :func:`spectrum`.

    Raises:
        ValueError: as :func:`spectrum`. TypeError: as :func:`spectrum`.

    Example::

        signal = torch.randn(2, 1, 64)
        network = nn.Sequential(nn.Conv1d(1, 4, 9), nn.ReLU(), nn.Flatten(), nn.Linear(224, 3)).eval()
        inspected = fastlrp.Explainer(fastlrp.frequencies.FromFrequencies(network, 64), "epsilon")
        found = inspected(fastlrp.frequencies.spectrum(signal), "all").sum(-1)  # (2, 3, 1, 33)
    """

    def __init__(
        self, model: nn.Module, length: int, window: Tensor | int | None = None, hop: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.length, self.hop = length, hop
        example = next(model.parameters(), torch.zeros(()))
        known = _transform(torch.zeros(length, dtype=example.dtype, device=example.device), window, hop)
        self.hop = known.hop
        self.window: Tensor | None
        self.register_buffer("window", known.window, persistent=False)
        self.training = model.training

    def forward(self, parts: Tensor) -> Any:
        return self.model(_Transform(self.length, self.window, self.hop).inverse(parts))


@dataclass
class _Transform:
    """The transform of signals of one length; of the whole signal, or of windows."""

    length: int
    window: Tensor | None
    hop: int | None

    def forward(self, x: Tensor) -> Tensor:
        """``(…, T)`` to parts ``(…, F, 2)`` or ``(…, F, N, 2)``."""
        if self.window is None:
            return torch.view_as_real(torch.fft.rfft(x))
        rows = x.reshape(-1, self.length)
        z = torch.stft(rows, len(self.window), self.hop, window=self.window.to(x), pad_mode="constant",
                       return_complex=True)  # fmt: skip
        return torch.view_as_real(z).reshape(*x.shape[:-1], *z.shape[1:], 2)

    def inverse(self, parts: Tensor) -> Tensor:
        """What :meth:`forward` made the parts from."""
        z = torch.view_as_complex(parts.contiguous())
        if self.window is None:
            return torch.fft.irfft(z, n=self.length)
        window = self.window.to(parts)
        if len(window) % 2:
            return self._of_odd_windows(z, window)
        rows = torch.istft(z.reshape(-1, *z.shape[-2:]), len(window), self.hop, window=window, length=self.length)
        return rows.reshape(*z.shape[:-2], self.length)

    def _of_odd_windows(self, z: Tensor, window: Tensor) -> Tensor:
        """As ``torch.istft``, which torch.export does not take with an odd window."""
        size, hop = len(window), self.hop or 1
        whole = (z.shape[-1] - 1) * hop + size

        def added(frames: Tensor) -> Tensor:
            return nn.functional.fold(frames, (1, whole), (1, size), stride=(1, hop))[:, 0, 0]

        frames = torch.fft.irfft(z.reshape(-1, *z.shape[-2:]), n=size, dim=1) * window[:, None]
        weight = added((window * window)[None, :, None].expand(1, size, z.shape[-1]))
        begin = size // 2
        end = min(whole, begin + self.length)
        rows = added(frames)[:, begin:end] / weight[:, begin:end]
        rows = nn.functional.pad(rows, (0, begin + self.length - end))
        return rows.reshape(*z.shape[:-2], self.length)

    def transposed(self, c: Tensor) -> Tensor:
        """``A^T c`` of the inverse ``A``: ``(…, T)`` to parts."""
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: autograd keeps none that were made in inference mode.
            own = self if self.window is None else replace(self, window=self.window.clone())
            point = torch.zeros_like(self.forward(c)).requires_grad_()
            (found,) = torch.autograd.grad(own.inverse(point), point, c.clone())
        return found


def _transform(x: Tensor, window: Tensor | int | None, hop: int | None) -> _Transform:
    if not x.is_floating_point() or x.dim() == 0 or x.shape[-1] < 2:
        raise ValueError(f"a signal must be floats (…, T) with T of 2 at least, got {tuple(x.shape)} {x.dtype}")
    length = x.shape[-1]
    if window is None:
        if hop is not None:
            raise ValueError("hop= is the way from window to window: give a window= too")
        return _Transform(length, None, None)
    if isinstance(window, int) and not isinstance(window, bool) and window > 1:
        window = torch.hann_window(window, dtype=x.dtype, device=x.device)
    if not isinstance(window, Tensor) or window.dim() != 1 or not window.is_floating_point():
        raise TypeError("window must be floats (n) or their number, 2 at least, got "
                        f"{tuple(window.shape) if isinstance(window, Tensor) else repr(window)}")  # fmt: skip
    size = len(window)
    hop = max(1, size // 4) if hop is None else hop
    if size > length or not isinstance(hop, int) or not 0 < hop <= size:
        raise ValueError(
            f"a window of {size} and a hop of {hop} do not fit a signal of {length}: the window is at most as long, "
            "and the hop between 1 and the window"
        )
    made, ones = _Transform(length, window, hop), torch.ones(length, dtype=x.dtype, device=x.device)
    try:
        complete = torch.allclose(made.inverse(made.forward(ones)), ones, atol=1e-3)
    except RuntimeError:  # PyTorch's own word for windows with gaps between them.
        complete = False
    if not complete:
        raise ValueError(
            f"windows of {size} with a hop of {hop} leave samples out, so that the signal cannot be made of them "
            "again: take a smaller hop"
        )
    return made
