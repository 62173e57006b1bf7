"""What cannot be explained is an error at capture that names operation, module and the ways out; and those work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import CaptureError, UnsupportedOperationError, composites, register_rule, rules
from fastlrp.capture.wording import shape_text, without_symbols
from fastlrp.plan import assign
from tests.models.cases import Written, conv, linear, vector, volume
from tests.models.checks import unmodified

pytestmark = pytest.mark.usefixtures("own_registry")


def _loop(m: Any, x: Tensor) -> Tensor:
    while x.norm() > 1:
        x = x / 2
    return m.last(x)


@pytest.mark.parametrize(
    "body",
    [lambda m, x: m.last(x) if x.sum() > 0 else m.last(-x), _loop, lambda m, x: m.last(x[:, : int(x.max())])],
    ids=["if", "while", "slice"],
)
def test_control_flow_that_depends_on_data(body: Callable[..., Tensor]) -> None:
    model = Written(body, last=linear(10)).eval()
    with unmodified(model), pytest.raises(CaptureError) as error:
        fastlrp.Explainer(model, example_inputs=vector())
    message = str(error.value)
    assert "could not be captured" in message
    assert "torch.export" in message
    assert "torch.where, or explain" in message
    assert "torch.cond" not in message  # Which could not be traced either.


def test_training_mode() -> None:
    for model, name in (
        (nn.Sequential(nn.Linear(10, 4), nn.Dropout(0.3)), "dropout"),
        (nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4)), "batch_norm"),
    ):
        with pytest.raises(CaptureError, match=rf"{name} at '1' is in training mode.*call model.eval\(\) first"):
            fastlrp.explain(model.train(), vector(), [0])
    # Nothing in it behaves differently then.
    assert fastlrp.explain(nn.Sequential(nn.Linear(10, 4), nn.Dropout(0.0)).train(), vector(), [0]).shape == (3, 1, 10)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return weights @ self.value(x)


MODEL = "(the model itself)"
UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, str]] = {
    "hypot": (
        lambda: Written(lambda m, x: torch.hypot(m.a(x), m.b(x)), a=linear(10), b=linear(10)),
        vector, "hypot", MODEL,
    ),
    "inverse": (
        lambda: Written(lambda m, x: m.b(torch.linalg.inv(m.a(x)[..., :3, :3]).flatten(1)), a=conv(3, 5), b=linear(45)),
        lambda: volume(2), "linalg_inv", MODEL,
    ),
    "module": (
        lambda: nn.Sequential(nn.Linear(10, 8), Written(lambda m, x: x.digamma())), vector, "digamma", "1",
    ),
    "digamma": (lambda: Written(lambda m, x: m.a(torch.digamma(x)), a=linear(10)), vector, "digamma", MODEL),
}  # fmt: skip


@pytest.mark.parametrize("name", list(UNSUPPORTED))
def test_operations_without_a_rule(name: str) -> None:
    make, sample, operation, path = UNSUPPORTED[name]
    model = make().eval()
    with unmodified(model), pytest.raises(UnsupportedOperationError) as error:
        fastlrp.Explainer(model, example_inputs=sample())
    message = str(error.value)
    assert f"'{operation}'" in message
    assert f"'{path}'" in message
    assert "with_entries" in message
    assert f"register_rule('{operation}', rule)" in message


COMPLEX: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "angle": (r"'complex_angle'.*longer or shorter", lambda m, x: torch.fft.rfft(x).angle()),
    "activation": (r"'complex_tanh'.*real tensors, z\.real and z\.imag", lambda m, x: torch.fft.fft(x).tanh().real),
    "quotient": (r"'complex_reciprocal'", lambda m, x: (1 / torch.fft.fft(x)).imag),
    "output": (r"'complex_output'.*output=lambda z: z\.abs\(\)", lambda m, x: torch.fft.fft(x)),
}


@pytest.mark.parametrize("name", list(COMPLEX))
def test_complex_numbers(name: str) -> None:
    message, function = COMPLEX[name]
    with pytest.raises(UnsupportedOperationError, match=message):
        fastlrp.Explainer(Written(function).eval(), example_inputs=vector())


def test_complex_input() -> None:
    model = Written(lambda m, x, z: m.a(x) + z.real.sum(1, keepdim=True), a=linear(10)).eval()
    x, z = vector(), torch.randn(3, 10, dtype=torch.complex64)
    with pytest.raises(UnsupportedOperationError, match=r"reads a complex input .*\(torch.complex64\).*view_as_real"):
        fastlrp.explain(model, (x, z), [0])
    with pytest.raises(TypeError, match=r"x is torch\.complex64"):
        fastlrp.explain(nn.Linear(10, 4, dtype=torch.complex64), z, [0])


def test_advice_for_recurrent_layers() -> None:
    """Time along axis 0, which is the batch."""
    x = volume(1)
    for layer in (nn.LSTM, nn.GRU):
        model = Written(lambda m, x: m.b(m.rnn(x)[0][:, -1]), rnn=layer(12, 5), b=linear(5)).eval()
        for composite in ("epsilon_plus", "gradient"):
            with pytest.raises(UnsupportedOperationError, match=r"recurrent layer.*batch_first"):
                fastlrp.explain(model, x, [0], composite)


@pytest.mark.usefixtures("captured_once")
def test_advice_for_attention() -> None:
    """Under a composite of one's own that has no entry for it; the presets have one."""
    entries = (
        (composites.kind("linear"), rules.Epsilon(0.0)),
        (composites.kind("activation", "attention_weights", "mul"), rules.Pass()),
        (composites.kind("add"), rules.Norm(0.0)),
    )
    bare, x = composites.Composite(entries), torch.randn(2, 6, 12)
    layers: list[nn.Module] = [
        Written(lambda m, x: m.b(F.scaled_dot_product_attention(x, x, x)[:, 0]), b=linear(12)),
        Written(lambda m, x: m.b((x @ x.mT).softmax(-1)[:, 0]), b=linear(6)),
        Written(lambda m, x: m.b(torch.einsum("bsd,btd->bst", x, x)[:, 0]), b=linear(6)),
        Written(
            lambda m, x: m.b(m.a(x, x, x)[0][:, 0]), a=nn.MultiheadAttention(12, 2, batch_first=True), b=linear(12)
        ),
    ]
    for model in layers:
        assert fastlrp.Explainer(model.eval(), "lrp0").verify(x, [0]).ok
        with pytest.raises(UnsupportedOperationError, match=r"product of two activations.* not supported") as error:
            fastlrp.explain(model, x, [0], bare)
        message = str(error.value)
        assert "changes a view" not in message
        assert "with_entries" in message
        assert "Pass()" not in message
        operation = re.search(r"operation\('(\w+)'\), rule", message)
        assert operation is not None
        composite = bare.with_entries((composites.operation(operation[1]), rules.Gradient()))
        assert fastlrp.Explainer(model, composite).verify(x, [0]).ok
        if "register_rule" in message:
            register_rule(operation[1], rules.Gradient())
            assert fastlrp.Explainer(model, bare).verify(x, [0]).ok
            assign._REGISTERED.clear()


SAYS: dict[str, tuple[Callable[..., Any], str]] = {
    "cond": (
        lambda m, x: m.last(torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,))),
        r"calls cond.*torch\.where",
    ),
    "item": (lambda m, x: m.last(x * x.sum().item()), "'item'.*plain number out of data"),
    "boolean_index_written": (
        lambda m, x: m.last(x + x[x > 0].relu_().sum()),
        r"'relu_'.*writes in place where sizes are computed from data.*torch\.where",
    ),
    "boolean_index": (lambda m, x: m.last(x[:, x[0] > 0][:, :1].expand(-1, 10)), "data"),
    "random": (lambda m, x: m.last(x + torch.rand_like(x)), "'rand_like'.*random numbers"),
    "index_from_another_sample": (
        lambda m, x: m.last(x[x.argmax(1) * 0]),
        r"index.*one sample into another.*torch\.gather",
    ),
    "nodes_along_axis_0": (lambda m, x: m.last(m.adjacency @ x), r"matmul.*sums over axis 0.*\(1, nodes, features\)"),
    "first_sample": (lambda m, x: m.last(_written(x)), r"select .*works along axis 0.*select_scatter"),
    "weight_from_the_input": (lambda m, x: F.linear(x, m.last(x.mean(0)).view(4, 1) * x[:1]), "batch"),
    "two_symbols": (lambda m, x: m.last(x.view(-1)[None].expand(len(x), -1)[:, :10]), "batch"),
}


def _written(x: Tensor) -> Tensor:
    y = x * 2
    y[0] = 0
    return y


@pytest.mark.each_value
@pytest.mark.parametrize("composite", ["epsilon_plus", "gradient"])
@pytest.mark.parametrize("name", list(SAYS))
def test_messages_say_what_and_show_no_symbols(name: str, composite: str) -> None:
    function, expected = SAYS[name]
    model = Written(function, last=linear(10), adjacency=nn.Parameter(torch.rand(3, 3))).eval()
    with pytest.raises((CaptureError, UnsupportedOperationError), match=expected) as error:
        fastlrp.explain(model, vector(), [0], composite)
    assert not re.search(r"\b(s\d+|z?uf?\d+)\b", str(error.value)), str(error.value)


def test_symbols_are_replaced_in_any_expression() -> None:
    assert without_symbols("Ne(s33*s77, 2*u0) and s0 or zuf3 in bus12") == (
        "Ne(batch*batch, 2*<computed from data>) and batch or <computed from data> in bus12"
    )
    assert shape_text((None, 3, "4*s33", "u0")) == "(batch, 3, 4*batch, <computed from data>)"


def test_torchscript_is_told() -> None:
    inner = torch.jit.script(nn.Linear(10, 10))
    with pytest.raises(CaptureError, match=r"module '0' is a TorchScript module"):
        fastlrp.explain(nn.Sequential(inner, nn.Linear(10, 4)).eval(), vector(), [0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_layers_are_told() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(CaptureError, match=r"module '0' \(Linear\) computes with quantised weights.*model of floats"):
        fastlrp.explain(quantised, vector(), [0])


def _assigned(model: Any, x: Tensor) -> Tensor:
    h = x.relu()
    h.data = h.data.repeat(1, 2)
    scores: Tensor = model.last(h[:, :10])
    return scores


@pytest.mark.parametrize(
    ("body", "way"),
    [
        (lambda m, x: m.last(x.relu().as_subclass(torch.Tensor)), "`.as_subclass\\(\\)` gives.*read the tensor itself"),
        (lambda m, x: _assigned(m, x), r"assigns to .data of .* another shape or dtype.*let a new name stand"),
        (lambda m, x: m.last(torch.from_numpy(x.numpy())), "computes with NumPy arrays: write it with tensors"),
    ],
)
def test_what_leaves_the_trace(body: Any, way: str) -> None:
    with pytest.raises(CaptureError, match=way):
        fastlrp.explain(Written(body, last=linear(10)).eval(), vector(), [0])


def test_products_with_a_weight_by_other_names() -> None:
    x, weight = torch.randn(2, 6, dtype=torch.float64), nn.Parameter(torch.randn(3, 6, dtype=torch.float64))
    bodies = [
        lambda m, x: torch.tensordot(x, m.w, ([1], [1])),
        lambda m, x: torch.tensordot(m.w, x, ([1], [1])).t(),
        lambda m, x: torch.inner(m.w, x).t(),
    ]
    for body in bodies:
        relevance = fastlrp.explain(Written(body, w=weight).eval(), x, [0, 2], "lrp0")
        torch.testing.assert_close(relevance, x.unsqueeze(1) * weight.detach()[[0, 2]])


def test_own_entry_by_an_index_of_its_own_sample() -> None:
    """``x[arange(B), lengths]``: the last step of each sequence."""
    model = Written(lambda m, x, n: m.last(x[torch.arange(x.shape[0]), n - 1]), last=linear(12)).eval()
    x, lengths = torch.randn(4, 6, 12), torch.tensor([1, 6, 3, 3])
    relevance, _ = fastlrp.explain(model, (x, lengths), [0], "lrp0")
    expected = torch.zeros(4, 1, 6, 12)
    for sample, n in enumerate(lengths.tolist()):
        expected[sample, 0, n - 1] = x[sample, n - 1] * model.last.weight[0].detach()
    torch.testing.assert_close(relevance, expected)


MIXES_THE_BATCH: dict[str, Callable[..., Tensor]] = {
    "weight_from_the_batch": lambda m, x: m.last(
        F.conv1d(x.unsqueeze(1), x.mean(0)[:3].view(1, 1, 3), None, 1, 1)[:, 0]
    ),
    "mean_of_all": lambda m, x: m.last(x - x.mean()),
    "transposed": lambda m, x: m.last(x.t() @ x),
    "joined": lambda m, x: m.last(torch.cat([x, x.flip(0)], 0)),
}


@pytest.mark.parametrize("name", list(MIXES_THE_BATCH))
def test_samples_that_are_mixed(name: str) -> None:
    model = Written(MIXES_THE_BATCH[name], last=linear(10)).eval()
    with pytest.raises(UnsupportedOperationError, match=r"batch|no rule for operation 'matmul'"):
        fastlrp.explain(model, vector(), [0])


def test_output_that_depends_on_integers_only() -> None:
    model = Written(lambda m, x: m.last(x.argmax(1)), last=nn.Embedding(10, 4)).eval()
    with pytest.raises(UnsupportedOperationError, match="no relevance reaches the model's input"):
        fastlrp.explain(model, vector(), [0])


def test_output_that_does_not_depend_on_the_input() -> None:
    model = Written(lambda m, x: m.weight * 2, weight=nn.Parameter(torch.ones(3, 4))).eval()
    with pytest.raises(CaptureError, match="does not depend on its input"):
        fastlrp.explain(model, vector(), [0])


def test_the_gradient_composite_needs_no_rules() -> None:
    model = Attention().double().eval()
    x = volume(1).double()
    explained = (
        Written(lambda m, x: m.last(m.attention(x).flatten(1)), attention=model, last=linear(36)).double().eval()
    )
    point = x.clone().requires_grad_(True)
    output = explained(point)
    gradients = [torch.autograd.grad(output[:, t].sum(), point, retain_graph=True)[0] for t in range(4)]
    found = fastlrp.explain(explained, x, "all", "gradient", initial="one")
    torch.testing.assert_close(found, torch.stack(gradients, 1))
