"""The rule of recurrent layers: signals take relevance, gates do not, or both take half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastlrp.rules.rule import Rule
from fastlrp.stabilizer import Stabilizer


@dataclass(frozen=True)
class Recurrent(Rule):
    """LSTM, GRU and plain recurrent layers: proportional shares at sums, ``gates`` at products of gate and signal.

    A product ``y = gate * signal`` gives all of its relevance to the signal (signal-take-all, ``gates="signal"``), or
    half of it to each (``gates="uniform"``). Activations pass relevance on as it is. At a sum ``z = sum_i z_i + b``

        R_i = z_i R / st(z) + bias_factor (b + st(z) - z) R / (N st(z))

    where ``N`` is the number of lower units: all entries of ``x`` and ``h`` at the sums of gates; those of both
    summands, twice the cell's size, at ``c_t = f c_{t-1} + i g``. Per step, with ``gates="signal"``:

        LSTM: R_c += R_h;  f c_{t-1} and i g share R_c;  R_g goes to x_t and h_{t-1} by W_g x_t + U_g h_{t-1} + b_g.
        GRU:  (1 - z) n and z h_{t-1} share R_h;  R_n goes to x_t and h_{t-1} by W_n x_t + r (U_n h_{t-1} + c_n) + b_n.
        RNN:  R_h goes to x_t and h_{t-1} by W x_t + U h_{t-1} + b.

    Under ``gates="uniform"`` relevance of long sequences may grow without bound by this definition: what gates get is
    divided by their sums, which come near zero at some step. With 64 units and random weights the largest is 1e11 after
    50 steps and 1e47 after 200; with a stabilizer of 0.01 or more nothing grows.

    A projection (``proj_size``) is one more sum. First hidden states get their share, which is in the ledger where they
    are not activations.

    Args:
        gates: ``"signal"`` or ``"uniform"``.
        stabilizer: of all sums.
        bias_factor: 1 gives what biases and stabilizer would keep to the lower units in equal parts, so that relevance
            is conserved; 0 leaves it there. A number between them gives that part of it. With ``gates="signal"``.

    Raises:
        ValueError: for other gates, a ``bias_factor`` outside [0, 1], or one with uniform gates.

    Example::

        mine = composites.epsilon().with_entries((composites.kind("recurrence"), rules.Recurrent(bias_factor=1.0)))

    Source: Arras et al. 2017, Explaining Recurrent Neural Network Predictions in Sentiment Analysis, section 3.2; Arras
    et al. 2019, Explaining and Interpreting LSTMs, section 2.2. Uniform: Achtibat et al. 2024, eq. 7.
    """

    gates: Literal["signal", "uniform"] = "signal"
    stabilizer: float | Stabilizer = 1e-6
    bias_factor: float = 0.0
    means = ("recurrence",)

    @property
    def grows(self) -> str:
        if self.gates != "uniform":
            return ""
        return (
            "By the definition of gates='uniform' relevance may grow at every time step, since it is divided by sums "
            "of gates that come near zero: use stabilizer=0.01 or more, or gates='signal'"
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gates not in ("signal", "uniform"):
            raise ValueError(f"Recurrent: gates must be 'signal' or 'uniform', got {self.gates!r}")
        if not 0 <= self.bias_factor <= 1:
            raise ValueError(f"Recurrent: bias_factor must be between 0 and 1, got {self.bias_factor!r}")
        if self.bias_factor and self.gates != "signal":
            raise ValueError("Recurrent: bias_factor is defined for gates='signal' only: use bias_factor=0.0")
