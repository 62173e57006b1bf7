"""From an unmodified ``nn.Module`` to a :class:`~fastlrp.capture.graph.Graph`, by ``torch.export``.

The model is traced once with a dynamic batch size; nothing of it is modified. Constants keep pointing at the model's
own parameters, so that trained weights are seen without another capture.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.carrying import chosen_by_floats
from fastlrp.capture.chosen import Chooser, Output
from fastlrp.capture.failure import failure
from fastlrp.capture.graph import Graph, Value, leaves
from fastlrp.capture.lift.graphs import lift, lift_all, travels
from fastlrp.capture.lift.probe import refuse_mixed_samples
from fastlrp.capture.lift.unmapped import write_out_mapped
from fastlrp.capture.state import refuse_memory
from fastlrp.capture.trace.attributes import unchanged
from fastlrp.capture.trace.bystanders import undisturbed
from fastlrp.capture.trace.forks import ForkLock
from fastlrp.capture.trace.interrupts import interrupted_afterwards
from fastlrp.capture.trace.packed import Rows, kept_padded
from fastlrp.capture.trace.quick_shapes import shapes_by_definition
from fastlrp.capture.trace.quiet import quiet
from fastlrp.capture.trace.settings import ways_out
from fastlrp.capture.trace.shape_memory import shapes_remembered
from fastlrp.capture.trace.traced import traced
from fastlrp.capture.trace.weight_cache import weights_made_anew
from fastlrp.capture.translate.program import Translator
from fastlrp.capture.unpacked import Unpacked
from fastlrp.capture.wrapper import Wrapper, choose_output
from fastlrp.errors import CaptureError, module_text

EXPORTING = ForkLock()
"""torch.export patches global state while it traces: one capture at a time in the whole process."""


@dataclass(eq=False)
class Captured:
    """A graph, what the model returns (with leaves numbered), and whether any batch size will do.

    ``unpacked`` looks whether the model packs its sequences as the graph does.
    """

    graph: Graph
    structure: Any
    fixed_batch: int | None
    unpacked: Unpacked | None = None


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Output,
    after: Callable[[], None] | None = None,
) -> Captured:
    """Trace ``model(*args, **kwargs)`` and translate it.

    Args:
        output: name or position of the output to explain; None if the model returns one tensor; or a function of what
            the model returns, whose operations become the last of the graph, under the path ``"(output)"``.
        after: called when the model's forward pass has run, before torch.export puts the modules' attributes back.

    Raises:
        CaptureError: if the model cannot be traced (data-dependent control flow), is in training mode with layers
            that then behave differently, or changes tensors in place in a way that cannot be followed;
            an UnsupportedOperationError if an operation mixes the samples of a batch.
        ValueError: if ``output`` does not name one of the model's outputs, or its function does not give one tensor.
    """
    refuse_unreadable(model)
    training = model.training
    wrapper = Wrapper(model, output)
    wrapper.training, wrapper.note.after = training, after
    tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ValueError("the model's input has no tensor: pass x as a tensor, a tuple of tensors or a dict")
    batch = tensors[0].shape[0] if tensors[0].dim() else 0
    program, fixed = _export(wrapper, args, kwargs, batch)
    try:
        graph = Translator(program, model, fixed, batch).translate()
    except CaptureError as error:
        hint = ways_out(model)
        if not hint or type(error) is not CaptureError:
            raise
        raise CaptureError(f"{error}.{hint}") from error
    if chosen_by_floats(graph):
        raise failure(wrapper, args, kwargs, TypeError("rows of an embedding are chosen by floats, not by integers"))
    write_out_mapped(graph)
    graph.output = graph.outputs[-1 if callable(output) else choose_output(wrapper.note.structure, output)]
    standing = refuse_mixed_samples(graph, tensors, batch if fixed else None)
    if not fixed:
        lift(graph, standing, tensors)
    elif batch == 0 or travels(graph, standing.rows if batch > 1 else _batch_first(graph)):
        graph = _from_one_sample(wrapper, args, kwargs, graph, tensors) or graph
    refuse_memory(wrapper, args, kwargs)
    found = Captured(graph, wrapper.note.structure, batch if fixed else None)
    if not wrapper.note.packs:
        return found
    alive = weakref.ref(model)  # A capture is kept as long as its model, not the other way round.

    def model_outputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        own = alive()
        assert own is not None
        returned: list[Tensor] = Wrapper(own, output)(args, kwargs)
        return returned

    unpacked = Unpacked(graph, model_outputs, fixed or wrapper.note.counts)
    if batch:
        with torch.no_grad(), unchanged(wrapper):
            unpacked.compare(tensors, args, kwargs)
    return replace(found, unpacked=unpacked)


def refuse_unreadable(model: nn.Module) -> None:
    """Raise CaptureError for modules of which torch.export sees no operations: TorchScript, quantised layers."""
    for name, module in model.named_modules():
        where = f"module {module_text(name)}"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{where} is a TorchScript module (torch.jit), whose operations cannot be seen: build the model from "
                "its Python source and load the weights with load_state_dict"
            )
        if "quantized" in type(module).__module__.split(".") or any(t.is_quantized for t in module.buffers(False)):
            raise CaptureError(
                f"{where} ({type(module).__name__}) computes with quantised weights, for which relevance is not "
                "defined: explain the model of floats that it was made from, or a copy of that one with the weights as "
                "they are after quantisation, layer.weight().dequantize()"
            )


def _batch_first(graph: Graph) -> set[Value]:
    return {v for v in (*graph.inputs, *(node.output for node in graph.nodes)) if v.has_batch_first}


def _from_one_sample(wrapper: Wrapper, args: Any, kwargs: Any, several: Graph, tensors: list[Tensor]) -> Graph | None:
    """For a model that holds on to one batch size and moves the batch axis: its graph for one sample, lifted."""
    batch = tensors[0].shape[0]
    if any(t.dim() == 0 or t.shape[0] != batch for t in tensors):
        return None
    first = lambda t: t[:1] if batch else t.new_zeros(1, *t.shape[1:])  # noqa: E731
    example = torch.utils._pytree.tree_map_only(Tensor, first, (args, kwargs))
    returned = wrapper.note.structure
    try:
        with tracing(wrapper):
            program = traced(wrapper, example)
        graph = Translator(program, wrapper.model, True, 1).translate()
    except Exception:  # It holds on to another batch size.
        graph = None
    own, wrapper.note.structure = wrapper.note.structure, returned
    if graph is None:
        return None
    if len(graph.outputs) != len(several.outputs):
        counts = f"{len(several.outputs)} tensors for {batch} samples and {len(graph.outputs)} for one"
        several.not_lifted = (
            f"The model gives {counts}, a list with an entry for each sample: wrap it in a module that returns only "
            "what is explained"
        )
        return None
    graph.output = graph.outputs[several.outputs.index(several.output)]
    if not lift_all(graph, several, tensors, batch):
        return None
    wrapper.note.structure = own
    return graph


def _two_samples(tree: Any, batch: int) -> Any:
    """The example with at least two samples: torch.export takes sizes 0 and 1 for constants."""

    def grow(t: Tensor) -> Tensor:
        if batch >= 2 or t.dim() == 0 or t.shape[0] != batch:
            return t
        return t.new_zeros(2, *t.shape[1:]) if batch == 0 else torch.cat([t, t])

    return torch.utils._pytree.tree_map_only(Tensor, grow, tree)


def _each_its_own(tree: Any) -> Any:
    """The example with a view in the place of a tensor that is given again: torch.export makes one input of both."""
    seen: set[int] = set()

    def own(t: Tensor) -> Tensor:
        again = id(t) in seen
        seen.add(id(t))
        return t.detach().view_as(t) if again else t

    return torch.utils._pytree.tree_map_only(Tensor, own, tree)


def _export(wrapper: Wrapper, args: Any, kwargs: Any, batch: int) -> tuple[torch.export.ExportedProgram, bool]:
    args, kwargs = _each_its_own((args, kwargs))
    symbol = torch.export.Dim("batch", min=1)

    def dynamic(t: Any) -> Any:
        return {0: symbol} if isinstance(t, Tensor) and t.dim() and t.shape[0] == batch else None

    shapes = torch.utils._pytree.tree_map(dynamic, (args, kwargs))
    with tracing(wrapper) as packed:
        try:
            return traced(wrapper, _two_samples((args, kwargs), batch), dynamic_shapes=shapes), False
        except Exception as first:
            trouble = first
            # Some models hold on to one batch size (view(1, -1)); those are captured again for each size.
            try:
                return traced(wrapper, (args, kwargs)), True
            except Exception as second:
                if isinstance(second, CaptureError):  # It knows sizes as numbers.
                    trouble = second
                chooser = wrapper.chosen_output
                mine = chooser.explained() if isinstance(chooser, Chooser) else None
                if isinstance(chooser, Chooser) and mine is not None:
                    raise mine from chooser.trouble
                raise failure(wrapper, args, kwargs, trouble) from trouble
        finally:
            wrapper.note.packs, wrapper.note.counts = bool(packed), packed.counted


@contextlib.contextmanager
def tracing(wrapper: nn.Module) -> Iterator[Rows]:
    """What torch.export needs around it, and others who run the model meanwhile; gives the rows that it packs."""
    # A model made in inference mode can only be traced in it, any other only outside.
    inference = any(t.is_inference() for t in (*wrapper.parameters(), *wrapper.buffers()))
    with (
        EXPORTING,
        interrupted_afterwards(),
        undisturbed(wrapper),
        weights_made_anew(),
        kept_padded(any(isinstance(m, nn.RNNBase) for m in wrapper.modules())) as packed,
        quiet(),
        shapes_remembered(wrapper),
        shapes_by_definition(),
        torch.inference_mode(inference),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        yield packed
