"""What a capture that fails leaves on the screen, and what its error says about detectors."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
import torch._dynamo.config
from torch import Tensor, nn

import fastlrp
from fastlrp.capture.trace.quiet import quiet


class Branches(nn.Module):
    """Returns as many boxes as the data say, as a detector does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(x)
        kept = scores[scores > 0]
        print("the model speaks", file=sys.stderr)
        return kept * 2 if kept.numel() > 3 else scores.sum(1)


def test_a_failing_capture_prints_no_graph_and_points_to_backbone_and_head(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(fastlrp.CaptureError, match="backbone and head as one module, before non-maximum suppression"):
        fastlrp.Explainer(Branches().eval(), example_inputs=torch.randn(2, 4))
    captured = capsys.readouterr()
    assert "torch.ops" not in captured.err
    assert "def forward" not in captured.err + captured.out
    assert set(captured.err.split("\n")) <= {"the model speaks", ""}
    assert "the model speaks\n" in captured.err


def test_other_threads_and_streams_are_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    graph = "\ndef forward(self, x):\n    y = torch.ops.aten.relu.default(x)\n"
    with quiet():
        print(graph, file=sys.stderr)
        print("after it", file=sys.stderr)
        other = threading.Thread(target=lambda: print(graph, file=sys.stderr))
        other.start()
        other.join()
        assert sys.stderr.isatty() == before.isatty()
    assert sys.stderr is before
    assert capsys.readouterr().err == f"after it\n{graph}\n"


@pytest.mark.parametrize(("layers", "remembered"), [(2, False), (40, True)])
def test_shapes_are_remembered_while_a_large_model_is_traced_alone(layers: int, remembered: bool) -> None:
    seen = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch._dynamo.config.fake_tensor_cache_enabled)
            return x

    model = nn.Sequential(*(nn.Identity() for _ in range(layers - 2)), Looks(), nn.Linear(2, 2)).eval()
    fastlrp.Explainer(model, example_inputs=torch.ones(2, 2))
    assert remembered in seen[:1]
    assert torch._dynamo.config.fake_tensor_cache_enabled
