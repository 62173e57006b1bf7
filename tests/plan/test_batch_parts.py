"""A batch that goes through forward steps and down in parts, because its maps are large."""

from typing import Any

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import Stabilizer, composites, rules
from fastlrp.plan.passes import batch_parts
from fastlrp.plan.paths.path import Path
from fastlrp.run.parted import Parted

BATCH = 5


class Network(nn.Module):
    """Maps of 8x8 with four channels, a residual sum, then maps of 4x4 and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.fourth, self.last = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(96, 12), nn.Linear(12, 7)

    def forward(self, x):
        x = self.first(x).relu()
        x = (self.second(x) + x).relu()
        x = nn.functional.max_pool2d(x, 2)
        return self.last(self.fourth(self.third(x).relu().flatten(1)).relu())


@pytest.fixture
def small_limits(monkeypatch):
    """Maps of 8x8 are large, two samples of them fit, and reading a weight again costs nothing."""
    monkeypatch.setattr(batch_parts, "MAPPED_ANEW", 4 * 64 * 8 * 4)
    monkeypatch.setattr(batch_parts, "READ", 1e30)
    monkeypatch.setattr("fastlrp.plan.plan.CPU_REGISTER_BYTES", 2 * 4 * 64 * 8)


def made(composite: Any = "epsilon_plus", **options: Any) -> tuple[fastlrp.Explainer, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Network().double().eval(), torch.randn(BATCH, 3, 8, 8, dtype=torch.float64)
    x[3] = x[3].abs()  # No entry below zero: asked for signs, this sample alone answers that there are none.
    return fastlrp.Explainer(model, composite, example_inputs=x, **options), x


def parts_of(record: fastlrp.ForwardRecord) -> list[tuple[int, ...]]:
    return [item.lengths for item in record._slots_in_parts() if type(item) is Parted]


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize(
    "composite",
    ["epsilon_plus", composites.epsilon_gamma_box(low=-4.0, high=4.0), "epsilon_alpha2_beta1"],
    ids=["plus", "box", "alpha_beta"],
)
def test_parts_give_what_each_sample_gives_alone(small_limits, composite, count):
    explainer, x = made(composite)
    targets = torch.arange(BATCH * count).view(BATCH, count) % 7
    with explainer.forward(x) as record:
        assert set(parts_of(record)) == {(2, 2, 1)}
        found = record.relevance(targets)
        assert parts_of(record), "a way down puts no slot together"
    alone = torch.cat([explainer(x[b : b + 1], targets[b : b + 1]) for b in range(BATCH)])
    torch.testing.assert_close(found, alone, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(explainer(x, targets), alone, rtol=1e-11, atol=1e-14)
    assert explainer.verify(x, targets[:, :2]).ok


@pytest.mark.parametrize("paths", ["auto", "sparse"])
def test_everything_that_is_asked_of_a_record_is_the_same(small_limits, monkeypatch, paths):
    def asked() -> dict[str, torch.Tensor]:
        explainer, x = made(paths=paths, max_memory="2MB")
        out = torch.empty(BATCH, 7, 3, 8, 8, dtype=torch.float64)
        record = explainer.forward(x)
        found = {f"layer {k}": v for k, v in record.relevance([1, 4], layers="all").items()}
        found["scores"] = record.scores
        found["reduced"] = record.relevance("all", reduce="channels")
        found["out"] = record.relevance("all", out=out)
        found["blocks"] = torch.cat([part for _, part in record.stream("all", block=3)], 1)
        found["groups"] = explainer(x, "all", groups=fastlrp.groups.patches(4))
        found["other rule"] = record.under("gamma").relevance([2])
        found["later"] = explainer.forward(x, lrp_aware=False).relevance([2])
        return found

    parted = asked()
    monkeypatch.setattr(batch_parts, "MAPPED_ANEW", 1 << 40)
    for name, whole in asked().items():
        torch.testing.assert_close(parted[name], whole, rtol=1e-11, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("count", [16, 40])
@pytest.mark.parametrize("lrp_aware", [True, False])
def test_densities_are_of_the_whole_batch(small_limits, monkeypatch, count, lrp_aware):
    """Of a batch in parts they were those of the last part."""

    def densities() -> dict[str, tuple[float, float]]:
        explainer, x = made(paths="sparse")
        targets = torch.arange(BATCH * count).view(BATCH, count) % 7
        with explainer.forward(x, lrp_aware=lrp_aware) as record:
            record.relevance(targets)
            assert explainer.plan.latest_paths is record.paths
            return {name: (path.above, path.below) for name, path in record.paths.items()}

    parted = densities()
    monkeypatch.setattr(batch_parts, "MAPPED_ANEW", 1 << 40)
    whole = densities()
    assert parted.keys() == whole.keys() >= {"second", "third", "fourth"}
    for name, found in whole.items():
        assert parted[name] == pytest.approx(found, abs=1e-6), name


def test_a_path_of_parts_that_went_two_ways():
    form: Any = None
    parts = [Path(form, True, 0.25, 0.5), Path(form, False, 1.0, 0.5), Path(form, True, 0.5, 0.25)]
    assert str(Path.of_parts(parts, [2, 2, 1])) == "sparse 0.60 x 0.45, 60% of samples"
    assert str(Path.of_parts(parts[:1] * 2, [2, 1])) == "sparse 0.25 x 0.50"


def test_what_looks_at_the_whole_batch_takes_it_whole(small_limits):
    class Halves(rules.Custom):
        def propagate(self, forward, inputs, output, relevance):
            return (relevance[:, :, :1].expand(-1, -1, *inputs[0].shape[1:]) / 2,)

    relative = composites.uniform(rules.Epsilon(Stabilizer(0.1, relative="tensor")))
    custom = composites.epsilon_plus().with_entries(("first", Halves()))
    for composite in (relative, custom):
        explainer, x = made(composite)
        assert not parts_of(explainer.forward(x))


def test_parts_are_about_equal_and_pay_for_their_weights(small_limits, monkeypatch):
    explainer, _ = made()
    plan = explainer.plan
    schedule = plan.forward_schedule()
    found = plan.batch_parts(schedule, BATCH)
    assert found is not None
    assert found.size == 2
    names = [step.name for step, _ in schedule.steps]
    assert any("max_pool" in name for name in names[: found.end]), names
    assert all(
        name.startswith(("third", "fourth", "last", "(model) (relu", "(model) (flat")) for name in names[found.end :]
    )
    assert found.runs(7) == [(0, 2), (2, 2), (4, 2), (6, 1)]
    assert batch_parts.BatchParts(3, 7).runs(8) == [(0, 4), (4, 4)]
    assert plan.batch_parts(schedule, 1) is None
    assert plan.batch_parts(schedule, 3) is None, "three samples of the largest map are not large"
    monkeypatch.setattr(batch_parts, "READ", 1.0)
    assert plan.batch_parts(schedule, BATCH + 1) is None, "reading weights again would take seconds"


class Counting(Network):
    """The same network, which asks its input how many samples there are, and says so where nothing changes.

    ``at`` names a place that reads the number of samples for something else.
    """

    def __init__(self, at: str = "") -> None:
        super().__init__()
        self.at = at
        self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, x):
        batch, _, high, wide = x.shape
        x = self.first(x).relu()
        if self.at == "early":
            x = x[torch.arange(batch)]
        y = self.second(x).view(batch, 4, high * wide).reshape(batch, 4, high, -1)
        y = y + self.shift.expand(batch, -1, high, wide) + x.new_zeros(batch, 4, high, wide)
        x = nn.functional.max_pool2d((y + x).relu(), 2)
        x = self.fourth(self.third(x).relu().view(x.size(0), -1)).relu()
        return self.last(x[torch.arange(batch)] if self.at == "late" else x)


def counting(at: str = "") -> tuple[fastlrp.Explainer, torch.Tensor]:
    plain, x = made()
    model = Counting(at).double().eval()
    model.load_state_dict(plain.model.state_dict(), strict=False)
    return fastlrp.Explainer(model, "epsilon_plus", example_inputs=x), x


@pytest.mark.parametrize("count", [1, 40])
def test_a_number_of_samples_that_is_read_for_sizes_alone_is_each_part_s_own(small_limits, monkeypatch, count):
    explainer, x = counting()
    targets = torch.arange(BATCH * count).view(BATCH, count) % 7
    with explainer.forward(x) as record:
        assert set(parts_of(record)) == {(2, 2, 1)}
        found, layers = record.relevance(targets), record.relevance([1], layers="all")
        other, slots = record.under("gamma").relevance([2]), record.state()
    assert explainer.verify(x, targets[:, :2]).ok
    monkeypatch.setattr(batch_parts, "MAPPED_ANEW", 1 << 40)
    explainer, _ = counting()
    with explainer.forward(x) as record:
        assert not parts_of(record)
        for slot, whole in zip(slots, record.state(), strict=True):
            assert not isinstance(whole, torch.Tensor) or torch.equal(slot, whole)
        # Products of several targets go through a library, whose order of sums depends on how many samples there are.
        torch.testing.assert_close(found, record.relevance(targets), rtol=1e-11, atol=1e-15)
        assert count > 1 or torch.equal(found, record.relevance(targets))
        assert torch.equal(other, record.under("gamma").relevance([2]))
        for name, whole in record.relevance([1], layers="all").items():
            assert torch.equal(layers[name], whole), name


@pytest.mark.parametrize("at", ["early", "late"])
def test_a_number_of_samples_that_is_read_for_more(small_limits, monkeypatch, at):
    explainer, x = counting(at)
    with explainer.forward(x) as record:
        assert bool(parts_of(record)) is (at == "late"), "behind the large maps all samples are there"
        found, scores = record.relevance([1, 2]), record.scores
    monkeypatch.setattr(batch_parts, "MAPPED_ANEW", 1 << 40)
    explainer, _ = counting(at)
    assert torch.equal(scores, explainer.forward(x).scores)
    torch.testing.assert_close(found, explainer(x, [1, 2]), rtol=1e-11, atol=1e-15)
