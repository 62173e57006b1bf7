"""A model as torch.export traces it, without the weak references to its tensors that the tracer leaves behind.

PyTorch keeps the tracer's memory of a model's tensors for as long as one of its caches likes, beyond the program's own
life. ``torch.utils.swap_tensors``, by which ``module.to()`` may convert parameters, refuses a tensor to which there is
a weak reference.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn

from fastlrp.capture.trace.attributes import unchanged
from fastlrp.capture.trace.functions import functions_followed, mark_functions


def traced(model: nn.Module, args: tuple[Any, ...], **options: Any) -> torch.export.ExportedProgram:
    """``torch.export.export(model, args, strict=False)``, which leaves the model's attributes as they were.

    Gradients are on, so that the blocks under ``torch.no_grad`` are seen; a model that is made to run without them
    alone, since it changes its own parameters or parts of a tensor in place, is traced without.
    """
    try:
        with unchanged(model), functions_followed() as functions:
            try:
                with torch.enable_grad(), _inference_without_gradients():
                    program = torch.export.export(model, args, strict=False, **options)
            except RuntimeError as error:
                if not _refused_by_autograd(error):
                    raise
                _forget(error)
                program = torch.export.export(model, args, strict=False, **options)
    except Exception as error:
        _forget(error)
        raise
    mark_functions(program, functions)
    for node in program.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            _forget_tensors(mode)
            break
    return program


@contextlib.contextmanager
def _inference_without_gradients() -> Iterator[None]:
    """A model's blocks under ``torch.inference_mode`` count as blocks under ``torch.no_grad``.

    The tracer sees these alone. Its own blocks, in which it makes stand-ins for tensors of that mode, stay as they
    are.
    """
    kind: Any = torch.inference_mode
    enter, leave, thread = kind.__enter__, kind.__exit__, threading.get_ident()

    def begin(block: Any) -> None:
        by = sys._getframe(1).f_globals.get("__name__", "")
        if not block.mode or threading.get_ident() != thread or by.startswith("torch._"):
            enter(block)
            return
        block.gradients_before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def end(block: Any, *error: Any) -> None:
        before = block.__dict__.pop("gradients_before", None)
        if before is None:
            leave(block, *error)
        else:
            torch.set_grad_enabled(before)

    kind.__enter__, kind.__exit__ = begin, end
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave


def _refused_by_autograd(error: Exception) -> bool:
    return any(
        word in str(error) for word in ("requires grad", "requires_grad", "backward", "view and is being modified")
    )


def _forget(error: BaseException) -> None:
    for mode in _modes_of_frames(error.__traceback__):
        _forget_tensors(mode)


def _modes_of_frames(traceback: TracebackType | None) -> Iterator[Any]:
    """What traced, where tracing failed: nobody else hands it out."""
    while traceback is not None:
        mode = traceback.tb_frame.f_locals.get("fake_mode")
        if mode is not None:
            yield mode
        traceback = traceback.tb_next


def _forget_tensors(mode: Any) -> None:
    """Empty the tracer's table of real tensors. A PyTorch that has it elsewhere keeps its references."""
    converter = getattr(mode, "fake_tensor_converter", None)
    describer = getattr(getattr(converter, "meta_converter", None), "describer", None)
    table = getattr(describer, "lookup_tensor", None)
    if table is not None:
        table.clear()
