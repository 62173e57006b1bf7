"""Changes that leave no trace in a tensor's version, and changes of what a module's forward pass reads."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import fastlrp.nn
from fastlrp import Explainer
from fastlrp.capture import fingerprint
from fastlrp.capture.fingerprint import Fingerprint
from tests.api.models import make, relative_error, samples

# Measured: 0 to 3e-16.
TIGHT = 1e-12


class Net(nn.Module):
    """Attributes of its own, of PyTorch's modules, and some that its forward pass writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(0.1)
        self.head = nn.Linear(6, 4)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 2.0)
        self.scale, self.twice, self.axes, self.last = 1.5, False, (2, 3), torch.tanh
        self.factors, self.more, self.kept = [1.0, 2.0], {"by": {"two": 1.0}}, [torch.ones(4, dtype=torch.float64)]
        self.calls, self.size, self.seen = 0, None, None
        self.offset = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def forward(self, x):
        self.calls += 1
        self.size, self.seen = x.shape[-1], x * 2
        h = self.act(self.norm(self.conv(x))) * self.scale * self.factors[1]
        h = self.last(h + h if self.twice else h)
        return (self.head(h.mean(self.axes)) * self.more["by"]["two"] * self.kept[0] + self.offset).square()


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().double().eval()


def image(size: int = 8):
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check_noticed(model: nn.Module, x: torch.Tensor, change, composite: str = "gamma") -> None:
    explainer = Explainer(model, composite)
    before = explainer(x, "all", initial="one")
    change(model)
    after = explainer(x, "all", initial="one")
    fresh = Explainer(copy.deepcopy(model), composite)(x, "all", initial="one")
    assert relative_error(after, before) > 1e-3, "the change has no effect: nothing is tested"
    assert relative_error(after, fresh) <= TIGHT
    with torch.no_grad():
        assert relative_error(explainer.forward(x).output, model(x)) <= TIGHT


# Numbers


def fused(kind):
    def change(model):
        optimizer = kind(model.parameters(), lr=0.3, fused=True)
        model(samples("residual")).square().sum().backward()
        before = [p._version for p in model.parameters()]
        optimizer.step()
        assert [p._version for p in model.parameters()] == before, "PyTorch counts these now: this test shows nothing"

    return change


def through_numpy(model):
    for parameter in model.parameters():
        parameter.detach().numpy()[...] *= -2


def through_data(model):
    model.inner.weight.data.mul_(-1)


def one_entry(model):
    model.stem.weight.detach().numpy()[0, 0, 0, 0] = 7.0


def buffer(model):
    model.norm.running_mean.numpy()[...] += 1


OPTIMIZERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad]


@pytest.mark.parametrize(
    "change", [*map(fused, OPTIMIZERS), through_numpy, through_data, one_entry, buffer], ids=range(8)
)
def test_numbers_written_without_a_trace(change):
    check_noticed(make("residual"), samples("residual"), change)


def test_a_record_refuses_after_a_traceless_write():
    model, x = make("residual"), samples("residual")
    explainer = Explainer(model, "gamma")
    with explainer.forward(x, lrp_aware=False) as record:
        record.relevance(0)
        through_data(model)
        with pytest.raises(RuntimeError, match="weights have changed since this record's forward pass"):
            record.relevance(0)
        explainer(x, 0)  # Which prepares the new weights.
        with pytest.raises(RuntimeError, match="weights have changed since this record's forward pass"):
            record.under("epsilon")


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        model = make("mlp")

    def change(model):
        with torch.inference_mode():
            model[0].weight.mul_(-1)

    check_noticed(model, samples("mlp"), change)


@pytest.mark.parametrize("composite", ["gradient", "attnlrp"])
def test_rules_that_differentiate_through_parameters_made_in_inference_mode(composite):
    def made() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.LayerNorm(6), nn.PReLU(6), nn.Linear(6, 3)
        return nn.Sequential(*layers).double().eval()

    with torch.inference_mode():
        model = made()
        assert model[2].weight.is_inference()
    x = torch.randn(2, 4, dtype=torch.float64)
    expected = fastlrp.explain(made(), x, "all", composite)
    torch.testing.assert_close(fastlrp.explain(model, x, "all", composite), expected)
    with torch.inference_mode():
        torch.testing.assert_close(fastlrp.explain(model, x, "all", composite), expected)
    assert Explainer(model, composite).verify(x, [0]).ok


def test_every_entry_of_a_large_tensor_is_looked_at_in_turn(monkeypatch):
    monkeypatch.setattr(fingerprint, "_WINDOW", 16 << 10)
    monkeypatch.setattr(fingerprint, "_LARGEST", 16 << 10)
    large = torch.randn(100_003)  # 98 rows of 1024 floats, and a rest.
    seen = Fingerprint([large, torch.randn(4)])
    assert not any(seen.changed() for _ in range(100))
    for place in [0, 1, 1023, 1024, 50_001, 99_999, 100_002]:
        large.numpy()[place] += 1e-3
        looks = next(n for n in range(1, 100) if seen.changed())
        assert looks <= 32
        assert not seen.changed()
    large.numpy()[...] = large.numpy()[::-1].copy()
    assert seen.changed(), "a permutation is a write to the whole tensor"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(9)[1:], torch.randn(7, dtype=torch.float16)[1:], torch.tensor(2.0), torch.tensor([True, False]),
        torch.randn(6, 5).t()[2:], torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.randn(3, dtype=torch.complex64), torch.full((5,), float("nan")), torch.ones(3).expand(2, 3),
    ],
    ids=range(9),
)  # fmt: skip
def test_memory_of_any_form(tensor):
    seen = Fingerprint([tensor, torch.empty(0), torch.empty(3, device="meta")])
    assert not seen.changed()
    flat = tensor.data.numpy()
    flat[(-1,) * flat.ndim] = 0 if bool(tensor.reshape(-1)[-1] != 0) else 1
    assert seen.changed()
    assert not seen.changed()
    tensor.data = tensor.data.clone()
    assert seen.changed()


# What forward reads


def attribute(path, name, value):
    def change(model):
        setattr(model.get_submodule(path), name, value)

    return change


def hook(model):
    model.act.register_forward_hook(lambda module, args, output: output * 3)


def pre_hook(model):
    model.head.register_forward_pre_hook(lambda module, args: (args[0] * 3,))


def instance_forward(model):
    model.act.forward = lambda x: x.abs() * 2 - x


def in_a_list(model):
    model.factors[1] = 5.0


def in_a_dict(model):
    model.more["by"]["two"] = 5.0


def of_a_list(model):
    model.kept[0] = torch.full((4,), 2.0, dtype=torch.float64)


def new_class(model):
    model.head.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x.square())})


READ = {
    "bn.eps": attribute("norm", "eps", 2.0), "slope": attribute("act", "negative_slope", 0.9),
    "float": attribute("", "scale", 0.3), "bool": attribute("", "twice", True), "tuple": attribute("", "axes", (3, 2)),
    "function": attribute("", "last", torch.relu), "stride": attribute("conv", "stride", (2, 2)), "list": in_a_list,
    "tensor": attribute("", "offset", torch.ones(4, dtype=torch.float64)), "inside": lambda model: model.offset.add_(1),
    "dict": in_a_dict, "list of tensors": of_a_list, "a tensor in it": lambda model: model.kept[0].mul_(3),
    "hook": hook, "pre-hook": pre_hook, "forward": instance_forward, "class": new_class,
}  # fmt: skip


@pytest.mark.parametrize("change", READ)
def test_what_forward_reads(change):
    model, x = net(), image()
    if change == "tuple":  # Has no effect on numbers; the model is captured again all the same.
        explainer = Explainer(model)
        before, found = explainer(x, 0), explainer.plan
        READ[change](model)
        assert relative_error(explainer(x, 0), before) <= TIGHT
        assert explainer.plan is not found
    else:
        check_noticed(model, x, READ[change])


def test_a_hook_removed_after_capture():
    model, x = net(), image()
    plain = Explainer(copy.deepcopy(model))(x, "all")
    handle = model.act.register_forward_hook(lambda module, args, output: output * 3)
    explainer = Explainer(model)
    assert relative_error(explainer(x, "all"), plain) > 1e-3
    handle.remove()
    assert relative_error(explainer(x, "all"), plain) <= TIGHT


def test_a_global_hook():
    model, x = net(), image()
    explainer = Explainer(model)
    plain = explainer(x, "all")
    handle = torch_module.register_module_forward_hook(
        lambda module, args, output: output * 2 if isinstance(module, nn.Linear) else None
    )
    try:
        assert relative_error(explainer(x, "all"), plain) > 1e-3
    finally:
        handle.remove()
    assert relative_error(explainer(x, "all"), plain) <= TIGHT


@pytest.mark.parametrize("owner", [Net, nn.LeakyReLU])
def test_a_patched_class(owner, monkeypatch):
    model, x = net(), image()
    explainer = Explainer(model)
    plain = explainer(x, "all")
    forward = owner.forward
    with monkeypatch.context() as patch:
        patch.setattr(owner, "forward", lambda self, x: forward(self, x).square())
        found = explainer(x, "all")
        assert relative_error(explainer.forward(x).output, model(x).detach()) <= TIGHT
    assert relative_error(found, plain) > 1e-3
    assert relative_error(explainer(x, "all"), plain) <= TIGHT


def test_what_forward_writes_is_no_change(counts):
    model = net()
    model(image())
    explainer = Explainer(model)
    for size in (8, 9, 8, 9):
        explainer(image(size), 0)
        model(image(10))
    assert counts.captured <= 3, "once for each size, and once for what looked like a change"
    captured = counts.captured
    for size in (8, 9):
        model(image(11))
        copy.deepcopy(model)(image(6))
        explainer(image(size), 0)
    assert counts.captured == captured


def test_attributes_that_nobody_could_read_before(counts):
    model, x = net(), image()
    explainer = Explainer(model)
    explainer(x, 0)
    model.notes = {"author": "me"}
    model.cache = torch.randn(3)
    model.cache = torch.randn(4)
    model.eval()
    explainer(x, 0)
    assert (counts.captured, counts.prepared) == (1, 1)


def test_the_modules_of_nn_take_rules_as_attributes(counts):
    net = fastlrp.nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    explainer, x = Explainer(net), torch.rand(2, 4)
    explainer(x, 0)
    net.set_lrp_parameters("epsilon", 0.1)
    net.forward(x, lrp_aware=True)
    net.lrp(torch.rand(2, 3))
    captured = counts.captured
    explainer(x, 0)
    assert counts.captured == captured


def test_captum_interface():
    from fastlrp.compat.captum import LRP

    model, x = net(), image()
    plain = LRP(model).attribute(x, 0)
    model.norm.eps = 2.0
    fresh = LRP(copy.deepcopy(model)).attribute(x, 0)
    assert relative_error(fresh, plain) > 1e-3
    assert relative_error(LRP(model).attribute(x, 0), fresh) <= TIGHT


def test_a_partial_as_attribute():
    model, x = net(), image()
    model.last = functools.partial(torch.nn.functional.leaky_relu, negative_slope=0.1)
    check_noticed(
        model, x, attribute("", "last", functools.partial(torch.nn.functional.leaky_relu, negative_slope=0.8))
    )
