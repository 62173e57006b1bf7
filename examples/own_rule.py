"""A rule of your own, in both ways: another weight in a line, and a rule written out.

1. :class:`fastlrp.rules.ModifiedWeights` is any rule that puts ``rho(w)`` in the place of the weight. Everything else
   (bias, stabilizer, many targets, the chained form) is fastlrp's.
2. :class:`fastlrp.rules.Custom` is a function from the relevance of an operation's output to that of its inputs. It
   also gives a rule to operations that fastlrp does not know.

Run it: ``python examples/own_rule.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import rules
from fastlrp.composites import epsilon, first

STRONGEST = rules.ModifiedWeights(lambda w: w * (w.abs() > 0.2), name="strong weights only")
"""Only weights (and biases) above 0.2 in size get relevance: ``rho(w) = w [|w| > 0.2]``."""


class BySquares(rules.Custom):
    """For a length ``torch.hypot(a, b) = sqrt(a^2 + b^2)``: each gets its square's part, ``a^2 / (a^2 + b^2)``."""

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor, ...]:
        # Inputs and output (B, C, L), relevance (B, K, C, L).
        squares = [x.square() for x in inputs]
        total = squares[0] + squares[1]
        return tuple(torch.where(total == 0, 0.0, s / total).unsqueeze(1) * relevance for s in squares)


class Energy(nn.Module):
    """Pairs of filters over time, the length of each pair's response, its mean over time, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 12, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, 1)
        return self.head(torch.hypot(first, second).mean(-1))


def strong_weights() -> tuple[Tensor, Tensor]:
    """Relevance under the first rule, and the same by the textbook's four steps; both ``(1, 2, 3)``."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.1, -0.5], [0.15, 2.0, 0.3]]))
        layer.bias.copy_(torch.tensor([0.1, 0.4]))
    x = torch.tensor([[1.0, 2.0, 1.0]])
    composite = epsilon().with_entries((nn.Linear, STRONGEST))
    relevance = fastlrp.explain(layer, x, "all", composite)

    weight, bias = STRONGEST.modify(layer.weight.detach()), STRONGEST.modify(layer.bias.detach())
    z = x @ weight.T + bias  # (1, 2)
    s = layer(x).detach() / z
    by_hand = x.unsqueeze(1) * (weight * s.unsqueeze(2))  # (1, 2, 3): sample, class, input
    return relevance, by_hand


def energies() -> tuple[Energy, Tensor, Tensor]:
    """A model with ``torch.hypot``, which has no rule until it is given one; the input and its relevance."""
    torch.manual_seed(0)
    model, x = Energy().eval(), torch.rand(2, 4, 10)
    fastlrp.register_rule("hypot", BySquares())
    # Composite entries come first: a flat rule for the first layer, the usual epsilon elsewhere.
    composite = epsilon().with_entries((first(), rules.Flat()))
    return model, x, fastlrp.explain(model, x, "all", composite)


def main() -> None:
    torch.set_printoptions(precision=4, sci_mode=False)
    relevance, by_hand = strong_weights()
    print(f"{STRONGEST}\nby fastlrp\n{relevance[0]}\nby hand\n{by_hand[0]}\n")

    model, x, relevance = energies()
    print(f"hypot, by squares: relevance {tuple(relevance.shape)} of an input {tuple(x.shape)}")
    print("class    score  relevance of the ten time steps of sample 0")
    for k, score in enumerate(model(x)[0].tolist()):
        steps = " ".join(f"{value:+.3f}" for value in relevance[0, k].sum(0).tolist())
        print(f"{k:>5}  {score:+.4f}  {steps}")


if __name__ == "__main__":
    main()
