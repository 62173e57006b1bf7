"""The errors that fastlrp raises on purpose."""

from __future__ import annotations


class CaptureError(RuntimeError):
    """The model could not be captured as a graph, or does something that relevance cannot be traced through."""


class UnsupportedOperationError(CaptureError):
    """An operation has no rule. The message names it, its module path and the ways out."""


class BackendError(RuntimeError):
    """A backend was asked for that cannot run the operation here; the message is the reason."""
