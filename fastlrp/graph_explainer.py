"""An explainer of graph networks: nodes as axis 0, edges given by integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastlrp.capture.chosen import Output
from fastlrp.capture.export import Captured
from fastlrp.capture.one_sample import capture_one
from fastlrp.capture.watch import Watch
from fastlrp.composites import Composite
from fastlrp.explainer import Explainer
from fastlrp.run.accept import accepted
from fastlrp.run.graph_inputs import GraphInputs, graph_inputs
from fastlrp.run.inputs import Inputs
from fastlrp.run.plans import Plans


class GraphExplainer(Explainer):
    """Layer-wise relevance propagation for a model whose input is one graph, without a batch axis.

    The input is what the model takes, for instance ``{"x": x, "edge_index": edge_index, "batch": batch}`` with node
    features ``(N, F)``. It is one sample: results are those of :class:`Explainer` with B = 1, ``(1, K, N, F)``, and
    ``record.scores`` is ``(1, *output.shape)``. For an output ``(N, C)`` or ``(G, C)`` ``at=`` names nodes or graphs.

    Floats are explained. Integers and truth values (edges, the graph of each node) say how the sample is built: they
    are fixed and have no relevance, and a graph with others is captured anew.

    Args:
        ids: names of integer inputs that choose rows of an embedding, and whose relevance is wanted:
            ``ids="x"`` where nodes are kinds of atoms.
        fixed: names of float inputs that say how the graph is built: a dense adjacency matrix, edge weights.
        model, composite: see :class:`Explainer`.
        options: all other arguments of :class:`Explainer`, ``example_inputs`` and ``precision`` among them.

    Raises:
        TypeError: where no input can have relevance. ValueError: for a name in ``ids`` that is no integer input. Else
            as :class:`Explainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite = "epsilon_plus",
        *,
        ids: str | Sequence[str] = (),
        fixed: str | Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.ids = (ids,) if isinstance(ids, str) else tuple(ids)
        self.fixed = (fixed,) if isinstance(fixed, str) else tuple(fixed)
        super().__init__(model, composite, **options)

    def _plans_of(self, *args: Any, **kwargs: Any) -> Plans:
        return GraphPlans(*args, trace=_trace, ids=self.ids, fixed=self.fixed, **kwargs)


class GraphPlans(Plans):
    """Plans for one sample each, by its sizes and what is fixed of it.

    A plan of a graph holds its edges and the model's own weights, and costs as much as 30 to 100 explanations: a data
    set of graphs that are explained again and again is remembered as a whole, up to :attr:`kept` graphs.
    """

    kept = 256

    def __init__(self, *args: Any, ids: Sequence[str] = (), fixed: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ids, self._fixed = ids, fixed

    def inputs(self, x: Any) -> Inputs:
        """``x`` taken apart; see :func:`fastlrp.run.graph_inputs.graph_inputs` for the errors."""
        home = self._home()
        return graph_inputs(accepted(x, home), self.model, self._ids, self._fixed, home, self._home)


def _trace(model: nn.Module, inputs: Inputs, output: Output, watch: Watch) -> Captured:
    assert isinstance(inputs, GraphInputs)
    return capture_one(model, inputs.args, inputs.kwargs, inputs.fixed, output, watch.code.written)
