"""Zennit's attributors: the same calls, answered by :class:`fastlrp.Explainer`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.compat.zennit.prepare import Prepared, check_composite, forget, prepare
from fastlrp.compat.zennit.question import Question, Start, answer, identity, starting
from fastlrp.compat.zennit.twin import refuse_hooks
from fastlrp.explainer import Explainer
from fastlrp.plan.plan import Plan

_SECOND_ORDER = (
    "fastlrp computes relevance without autograd, so there is no graph to differentiate again: use "
    "zennit.attribution.Gradient for second-order gradients"
)


class Gradient:
    """The product of ``attr_output`` with the Jacobian, as a composite modifies it: relevance, or the plain gradient.

    In the place of ``zennit.attribution.Gradient``::

        with Gradient(model, EpsilonPlusFlat(canonizers=[VGGCanonizer()])) as attributor:
            output, relevance = attributor(input, torch.eye(1000)[[3]])      # (B, 1000), as input
            output, relevance = attributor(input, targets=[3, 7, 11])        # (3, *input.shape), all at once

    Args:
        model: never modified; its modules are copied, its parameters are not unless there are canonizers.
        composite: one of Zennit's, with its canonizers; a :class:`fastlrp.Composite` or the name of a preset; None for
            the gradient.
        attr_output: default of the call's argument of this name.
        create_graph: must be False.
        retain_graph: has no meaning here and is ignored.

    Raises:
        TypeError, ValueError: for a model or composite that is none. NotImplementedError: for ``create_graph=True``.

    Example::

        from fastlrp.compat.zennit import Gradient

        with Gradient(model, "epsilon_plus") as attributor:
            output, relevance = attributor(x, torch.eye(10)[[3, 3]])
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: Tensor | Start | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_composite(composite)
        if create_graph:
            raise NotImplementedError(f"create_graph=True: {_SECOND_ORDER}")
        self.model, self.composite = model, composite
        self.create_graph, self.retain_graph = create_graph, retain_graph
        self.attr_output_fn = starting(attr_output, identity)
        self._entered: Prepared | None = None
        self._latest: Explainer | None = None

    def __enter__(self) -> Gradient:
        """Looks up which rule goes where, as Zennit does here. The model stays as it is."""
        self._entered = prepare(self.model, self.composite)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = None

    def __call__(
        self,
        input: Tensor,
        attr_output: Tensor | Start | None = None,
        *,
        targets: Any = None,
        layers: str | list[str] | None = None,
    ) -> tuple[Tensor, Any]:
        """Output and relevance.

        Args:
            input: ``(B, …)``.
            attr_output: the relevance of the output: a tensor of its shape, a function of it, None for what the
                attributor was made with (the output itself, unless told otherwise). A tensor ``(K, *output.shape)``
                asks K questions at once.
            targets: asks one question per class, each of which starts with its own entry of ``attr_output``. Classes
                as :class:`fastlrp.targets.targets.Targets` takes them: ``3``, ``[3, 7]``, ``"all"``, ``"top5"``,
                ``(B, K)``.
            layers: module paths, or ``"all"``: the relevance becomes a dict, that of those modules' outputs and of
                ``"input"`` and ``"output"``.

        Returns:
            the model's output ``(B, …)`` (of the canonized model, if there are canonizers), and the relevance of
            ``input``'s shape, or ``(K, *input.shape)`` for K questions. Neither has a graph.

        Raises:
            TypeError, ValueError, IndexError: for an ``attr_output`` or ``targets`` that do not fit the output.
            fastlrp.CaptureError: for a model that cannot be captured, or is in training mode where that matters.
            fastlrp.UnsupportedOperationError: for a hook of Zennit's that cannot be translated.
        """
        start = starting(attr_output, self.attr_output_fn)
        return self.forward(input, Question(start, targets, layers))

    def forward(self, input: Tensor, attr_output_fn: Start) -> tuple[Tensor, Any]:
        """What a call computes; for subclasses to replace."""
        return self.grad(input, attr_output_fn)

    def grad(self, input: Tensor, attr_output_fn: Start) -> tuple[Tensor, Any]:
        """Output and relevance of one input, for subclasses' ``forward``."""
        question = attr_output_fn if isinstance(attr_output_fn, Question) else Question(attr_output_fn)
        with self._explainer(input).forward(input.detach()) as record:
            return record.output, answer(record, question)

    def _explainer(self, input: Any) -> Explainer:
        if not isinstance(input, Tensor):
            raise TypeError(
                f"input must be a tensor, got {type(input).__name__}. For a model with several inputs use "
                "fastlrp.Explainer"
            )
        refuse_hooks(self.model)
        found = self._entered
        if found is None or found.seen.changed(self.model):
            found = prepare(self.model, self.composite)
            self._entered = None if self._entered is None else found
        self._latest = found.explainer
        return found.explainer

    def refresh(self) -> None:
        """Forget what was captured of the model: for attributes of modules, and single entries of large weights."""
        forget(self.model)
        self._latest = None
        self._entered = None if self._entered is None else prepare(self.model, self.composite)

    @property
    def plan(self) -> Plan:
        """Which rule each operation got at the latest call, and what is computed how; ``print`` it."""
        return (self._latest or prepare(self.model, self.composite).explainer).plan

    @property
    def inactive(self) -> Any:
        """Zennit's switch for second-order gradients, which there are none of here."""
        raise NotImplementedError(f"attributor.inactive: {_SECOND_ORDER}")


class _Explained(torch.autograd.Function):
    """The model's output, whose derivative is relevance."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, explainer: Explainer, parameters: Tensor | None) -> Tensor:
        ctx.record = explainer.forward(input.detach())
        return ctx.record.scores.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError(f"create_graph=True: {_SECOND_ORDER}")
        found = answer(ctx.record, Question(lambda output: grad)) if ctx.needs_input_grad[0] else None
        return found, None, None


class _Parameters(torch.autograd.Function):
    """Stands between the output and the model's parameters, and is run where their gradients are asked for."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        warnings.warn(_NO_PARAMETERS, UserWarning, stacklevel=2)
        return (None,) * ctx.count


_NO_PARAMETERS = (
    "under fastlrp's context a backward pass gives the input's relevance only: the parameters get no gradients, their "
    ".grad stays as it was. Ask for the input alone, torch.autograd.grad(output, input, …), or call "
    "model.requires_grad_(False); for parameters use zennit's composite.context(model)"
)


class _Modified(nn.Module):
    """What :func:`context` hands out: called like the model, differentiated like Zennit's modified model.

    Everything else of it is the model's: attributes, parameters, modules.
    """

    def __init__(self, attributor: Gradient) -> None:
        super().__init__()
        self._attributor, self.training = attributor, attributor.model.training

    def forward(self, input: Tensor) -> Tensor:
        trained = [p for p in self._attributor.model.parameters() if p.requires_grad]
        asked = _Parameters.apply(*trained) if trained and torch.is_grad_enabled() else None
        found: Tensor = _Explained.apply(input, self._attributor._explainer(input), asked)
        return found

    def __getattr__(self, name: str) -> Any:
        if "_attributor" not in vars(self):
            raise AttributeError(name)
        return getattr(self._attributor.model, name)

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        return self._attributor.model.named_parameters(*arguments, **options)

    def named_buffers(self, *arguments: Any, **options: Any) -> Any:
        return self._attributor.model.named_buffers(*arguments, **options)

    def named_children(self) -> Any:
        return self._attributor.model.named_children()

    def named_modules(self, *arguments: Any, **options: Any) -> Any:
        return self._attributor.model.named_modules(*arguments, **options)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self._attributor.model.state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self._attributor.model.load_state_dict(*arguments, **options)

    def train(self, mode: bool = True) -> Any:
        self.training = self._attributor.model.train(mode).training
        return self


@contextmanager
def context(model: nn.Module, composite: Any = None) -> Iterator[nn.Module]:
    """In the place of ``composite.context(model)``: a model whose backward pass gives relevance.

    ::

        with context(model, composite) as modified:
            output = modified(input)                          # input.requires_grad is True
            relevance, = torch.autograd.grad(output, input, torch.eye(10)[[3]])

    One backward pass of its output is one question: for many targets at once ask :class:`Gradient`. It gives no
    gradients of parameters (a ``UserWarning`` says so where a backward pass would), and none of a higher order.

    Args:
        model, composite: as of :class:`Gradient`.

    Example::

        from fastlrp.compat.zennit import context

        picture = x.clone().requires_grad_()
        with context(model, "epsilon_plus") as modified:
            (relevance,) = torch.autograd.grad(modified(picture), picture, torch.eye(10)[[3, 3]])
    """
    with Gradient(model, composite) as attributor:
        yield _Modified(attributor)
