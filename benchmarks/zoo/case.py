"""One model of the zoo with an input, and what of its output is explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import fastlrp


@dataclass
class Case:
    """What one process examines.

    Attributes:
        model: in evaluation mode; in float64, if it runs in that.
        inputs: a tensor, or a dict of keyword inputs, for two samples.
        output: the explainer's argument of that name.
    """

    model: nn.Module
    inputs: Any
    output: str | int | Callable[[Any], Tensor] | None = None

    def explained(self, returned: Any) -> Tensor:
        """The tensor of what the model returned that is explained."""
        if callable(self.output):
            return self.output(returned)
        if self.output is not None:
            return returned[self.output]
        while not isinstance(returned, Tensor):
            returned = returned[0]
        return returned

    def run(self, inputs: Any) -> Tensor:
        returned = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        return self.explained(returned)

    def explainer(self, composite: str) -> fastlrp.Explainer:
        """An explainer that has captured the model."""
        return fastlrp.Explainer(self.model, composite, example_inputs=self.inputs, output=self.output)

    def alone(self) -> tuple[Any, Callable[[Tensor], Tensor]]:
        """The second sample, and which part of the relevance of both has to be the same."""
        x = self.inputs
        return {k: v[1:2] for k, v in x.items()} if isinstance(x, dict) else x[1:2], lambda t: t[1:]


Maker = Callable[[], Case]


def randomised(model: nn.Module) -> nn.Module:
    """In evaluation mode and float64, with batch norms as after training and no layer scale near zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.numel() < 2 or float(parameter.detach().abs().max()) < 1e-3):
            nn.init.normal_(parameter, 0.1, 0.1)
    return model.double().eval()
