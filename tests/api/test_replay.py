"""Explanations that are recorded once and repeated: a tape stands in for the CUDA graph."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastlrp import Explainer, composites, rules
from fastlrp.run.replay import Replay
from fastlrp.stabilizer import Stabilizer
from tests.api.models import TwoInputs, make, relative_error, samples
from tests.api.replays import explainer_of, replay_of
from tests.api.tape import Tape

COMPOSITES = ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", composites.epsilon_gamma_box(low=-4.0, high=4.0)]


@pytest.mark.each_value
@pytest.mark.parametrize("name", ["convnet", "mlp", "reused", "residual", "segment", "score"])
@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c if isinstance(c, str) else "epsilon_gamma_box")
def test_equals_the_explainer_for_other_inputs_and_targets(name, composite):
    if composite not in COMPOSITES[:3] and name in ("mlp", "reused", "score"):
        pytest.skip("the box rule is for convolutions")
    explainer = explainer_of(name, composite)
    replay = replay_of(explainer, samples(name), 2)
    classes = explainer.forward(samples(name)).scores.shape[1] if name != "score" else 1
    for seed in range(3):
        x = samples(name, seed=10 + seed)
        targets = [[seed % classes, 0], [(seed + 1) % classes, classes - 1]]
        output, relevance = replay(x, torch.tensor(targets))
        torch.testing.assert_close(output, explainer.model(x))
        assert relative_error(relevance, explainer(x, torch.tensor(targets))) < 1e-12


def test_every_way_to_name_classes():
    explainer, x = explainer_of("mlp"), samples("mlp")
    replay = replay_of(explainer, x, 3)
    expected = explainer(x, "all")
    for targets in ("all", [0, 1, 2], range(3), torch.arange(3), torch.arange(3).expand(2, 3), (0, 1, 2)):
        torch.testing.assert_close(replay(x, targets)[1], expected)
    one = replay_of(explainer, x, 1)
    torch.testing.assert_close(one(x, 2)[1], expected[:, 2:])


def test_targets_at_positions():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 9)).double().eval()
    explainer = Explainer(model, "epsilon", backend="torch")
    x, other = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    for at in ([5, 1], torch.tensor([[5, 1], [0, 2]])):
        replay = replay_of(explainer, x, 6, at=at)
        for targets in ([8, 0, 3], torch.tensor([[1, 2, 3], [8, 8, 0]])):
            assert relative_error(replay(other, targets)[1], explainer(other, targets, at=at)) < 1e-12
    with pytest.raises(ValueError, match="got 4 targets, this replay was made for 6"):
        replay(x, [0, 1])
    with pytest.raises(TypeError, match="takes classes, not initial relevance or contrasts"):
        replay(x, [{0: 1.0, 1: -1.0}])
    with pytest.raises(ValueError, match="targets_count=3 must be so many targets at each of 2 positions"):
        replay_of(explainer, x, 3, at=[5, 1])
    with pytest.raises(ValueError, match="at='pairs' is not for it"):
        replay_of(explainer, x, 2, at="pairs")


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_the_top_selects_rows_where_it_can_and_multiplies_where_it_cannot(name):
    # Epsilon on the last layer takes one-hot targets; z+ there gets them as a dense tensor.
    for composite, one_hot in (("epsilon", True), ("zplus", False)):
        explainer, x = explainer_of(name, composite), samples(name)
        replay = replay_of(explainer, x, 2)
        assert explainer.plan.takes_one_hot == one_hot
        for targets in ([1, 0], [2, 2]):
            assert relative_error(replay(-x, targets)[1], explainer(-x, targets)) < 1e-12


@pytest.mark.each_value
@pytest.mark.parametrize("initial", ["output", "one", lambda y: y.softmax(1)], ids=["output", "one", "callable"])
@pytest.mark.parametrize("reduce", [None, "channels"])
def test_initial_and_reduce(initial, reduce):
    explainer, x = explainer_of("residual"), samples("residual", seed=5)
    replay = replay_of(explainer, samples("residual"), 2, initial, reduce)
    expected = explainer(x, [3, 1], initial=initial, reduce=reduce)
    assert relative_error(replay(x, [3, 1])[1], expected) < 1e-12


def test_many_targets_in_blocks_and_without_a_basis():
    # 64 targets through an edge of six: the explainer would move a basis of the living entries down.
    explainer, x = explainer_of("residual"), samples("residual")
    targets = [i % 4 for i in range(64)]
    expected = explainer(x, targets)
    assert relative_error(replay_of(explainer, x, 64)(x, targets)[1], expected) < 1e-12
    tight = explainer_of("residual", max_memory="1MB")
    assert relative_error(replay_of(tight, x, 64)(x, targets)[1], expected) < 1e-12
    with pytest.raises(ValueError, match="max_memory=10 bytes is too small for one target"):
        replay_of(explainer_of("residual", max_memory=10), x, 64)


class Mixed(nn.Module):
    """(B, 3, 9, 9) -> (B, 4): pools that overlap, hang over and adapt, a gate, moved entries, a derivative."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.gate = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, 2), nn.Linear(4 * 9, 4)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.norm(self.stem(torch.nn.functional.pad(x, (1, 1, 0, 0)))))
        x = torch.nn.functional.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        x = torch.cat([x[:, :3].flip(3), x[:, 3:].roll(1, 2)], 1)
        x = x * torch.sigmoid(self.gate(x).mean((2, 3), keepdim=True))
        x = torch.nn.functional.max_pool2d(torch.relu(self.up(x)), 3, 2)
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 3).permute(0, 2, 3, 1).flatten(1))


def _stabilized(stabilizer, mode):
    norms = ((composites.kind("avg_pool", "adaptive_avg_pool", "add"), rules.Norm(stabilizer)),)
    weights = ((composites.kind("conv", "linear"), rules.Epsilon(stabilizer)),)
    return replace(composites.resolve("epsilon_plus"), max_pool=mode).with_entries(*norms, *weights)


@pytest.mark.parametrize(
    "composite",
    [
        "epsilon_plus_flat", "wsquare", "gradient", "guided_backprop", "epsilon_alpha2_beta1",
        _stabilized(Stabilizer(1e-3, clip=True), "ties"), _stabilized(Stabilizer(0.1, relative="tensor"), "average"),
    ],
    ids=lambda c: c if isinstance(c, str) else c.max_pool,
)  # fmt: skip
def test_layers_of_every_type(composite):
    torch.manual_seed(0)
    model = Mixed().double().eval()
    x = torch.randn(2, 3, 9, 9).double()
    explainer = Explainer(model, composite, backend="torch")
    replay = replay_of(explainer, torch.randn_like(x), 3)
    assert relative_error(replay(x, [3, 0, 1])[1], explainer(x, [3, 0, 1])) < 1e-12


def test_several_inputs_and_outputs_keep_their_structure():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TwoInputs()

        def forward(self, left, right):
            y = self.inner(left, right)
            return {"logits": y, "twice": [y * 2]}

    torch.manual_seed(0)
    explainer = Explainer(Both().double().eval(), "epsilon", backend="torch", output="logits")
    x = (torch.randn(2, 4).double(), torch.randn(2, 3).double())
    replay = replay_of(explainer, x, 2)
    other = tuple(t + 1 for t in x)
    output, relevance = replay(other, [2, 0])
    torch.testing.assert_close(output, explainer.model(*other))
    assert isinstance(relevance, tuple)
    for found, expected in zip(relevance, explainer(other, [2, 0]), strict=True):
        assert relative_error(found, expected) < 1e-12
    named = replay_of(explainer, {"left": x[0], "right": x[1]}, 1)
    assert set(named({"left": x[0], "right": x[1]}, 1)[1]) == {"left", "right"}
    with pytest.raises(ValueError, match=r"x is a tuple with the tensors 0, 1; this replay was made for a dict with"):
        named(x, 1)


def test_results_are_copies_unless_asked_otherwise():
    explainer, x = explainer_of("mlp"), samples("mlp")
    replay = replay_of(explainer, x, 1)
    first = replay(x, 0)[1]
    kept = first.clone()
    view = replay(x, 0, copy=False)[1]
    torch.testing.assert_close(view, kept)
    replay(-x, 1)
    torch.testing.assert_close(first, kept)
    assert relative_error(view, explainer(-x, 1)) < 1e-12  # Overwritten, as it says.


def test_inference_mode_and_gradients_of_the_caller():
    explainer, x = explainer_of("mlp"), samples("mlp")
    with torch.inference_mode():
        replay = replay_of(explainer, x, 1)
        inside = replay(x * 1, 0)
    outside = replay(x.clone().requires_grad_(), 0)
    for result in (*inside, *outside):
        assert not result.is_inference()
        assert not result.requires_grad
    torch.testing.assert_close(inside[1], outside[1])


def test_threads_get_their_own_answers():
    explainer = explainer_of("convnet")
    inputs = [samples("convnet", seed=s) for s in range(8)]
    expected = [explainer(x, [s % 5, 1]) for s, x in enumerate(inputs)]
    recording = Tape()
    replay = Replay(explainer._plans, inputs[0], 2, recording=recording)
    errors: list[float] = []

    def work(start: int) -> None:
        for turn in range(8):
            s = (start + turn) % 8
            errors.append(relative_error(replay(inputs[s], [s % 5, 1])[1], expected[s]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == recording.turns == 32
    assert max(errors) < 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("copy", [True, False])
def test_on_a_gpu(copy):
    model = make("convnet", torch.float32).cuda()
    explainer = Explainer(model, "epsilon_plus")
    replay = explainer.replay(samples("convnet", dtype=torch.float32).cuda(), 3)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for seed in range(6):
        x = samples("convnet", dtype=torch.float32, seed=seed).cuda()
        targets = [seed % 5, 1, 4]
        with torch.cuda.stream(streams[seed % 2]):
            streams[seed % 2].wait_stream(torch.cuda.default_stream())
            output, relevance = replay(x, targets, copy=copy)
        torch.cuda.synchronize()
        torch.testing.assert_close(output, model(x), rtol=1e-3, atol=1e-3)
        assert relative_error(relevance, explainer(x, targets)) < 1e-3


def test_ids_in_the_place_of_floats():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    )
    explainer = Explainer(model, "epsilon", backend="torch")
    replay = replay_of(explainer, torch.zeros(2, 5, dtype=torch.int64), 2)
    for seed in range(2):
        x = torch.randint(0, 9, (2, 5), generator=torch.Generator().manual_seed(seed))
        output, relevance = replay(x, [0, 2])
        torch.testing.assert_close(output, model(x))
        assert relative_error(relevance, explainer(x, [0, 2])) < 1e-12
    with pytest.raises(ValueError, match=r"x has dtype torch.int32, this replay was made for torch.int64"):
        replay(x.int(), [0, 2])
