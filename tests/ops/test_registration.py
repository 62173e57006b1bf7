"""``torch.ops.fastlrp``: schemas agree with the definition, fakes with the results, and opcheck passes."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

from fastlrp import functional, library
from fastlrp.backends import dispatch
from fastlrp.backends.cpu import cpu_ops
from tests.ops.cases import reference


def samples() -> list[tuple[str, tuple[object, ...]]]:
    torch.manual_seed(0)
    r, x = torch.randn(2, 3, 4, 3, 3), torch.randn(2, 4, 6, 6)
    y, index = F.max_pool2d(x, 2, return_indices=True)
    weight, u = torch.randn(4, 2, 3, 3), torch.randn(2, 4, 3, 3)
    w, w3, big, x3 = torch.randn(4, 4, 3, 3), torch.randn(4, 3, 3, 3), torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    pool, onto = ([2, 2], [2, 2], [0, 0], [1, 1]), ([6, 6], [1, 1], [1, 1], [1, 1])
    conv = ([6, 6], [2, 2], [1, 1], [1, 1], False, [0, 0], 2)
    flow = torch.randn(2, 3, 5)
    q, k, v, g = torch.randn(2, 4, 5, 3), torch.randn(2, 2, 6, 3), torch.randn(2, 2, 6, 4), torch.randn(2, 3, 4, 5, 4)
    mask = torch.rand(2, 1, 5, 6) < 0.7
    attention = (mask, False, 0.5, 0.0)
    o, log_sum = reference("attention_forward")(q, k, v, *attention)
    z, index_of = torch.randn(2, 5), torch.randint(0, 5, (2, 3))
    r_t, e_t, u_t = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 5), torch.randn(5, 5) / 9
    return [
        ("linear_relevance", (flow, torch.randn(5, 7), z, None, None, None, False, False)),
        ("linear_relevance", (flow, torch.randn(5, 7), None, None, torch.randn(2, 7), None, False, True)),  # Up.
        ("linear_relevance", (flow, torch.randn(5, 7), z, z, torch.randn(2, 7), None, True, True)),
        ("linear_one_hot_relevance", (flow[..., 0], index_of, torch.randn(5, 7), z, None, None, False, False)),
        ("linear_one_hot_relevance", (flow[..., 0], index_of, torch.randn(5, 7), z, z, torch.randn(2, 7), True, True)),
        ("conv_relevance", (r, weight, u, None, None, None, *conv, False, False)),
        ("conv_relevance", (r, weight, None, None, x, None, *conv, False, True)),
        ("conv_relevance", (r, weight, u, u, x, weight.clamp(min=0), *conv, True, True)),
        ("conv_relevance", (r, weight, u, None, None, None, [2, 2], *conv[1:4], True, [0, 0], 2, False, False)),
        ("conv_unpooled_relevance", (r, index, w, big, None, None, None, [6, 6], *pool, *onto, 1, False, False)),
        ("conv_unpooled_relevance", (r, index, w, big, big, x, w.clamp(min=0), [6, 6], *pool, *onto, 1, True, True)),
        ("input_relevance", (r, [weight], [u], [None], [6, 6], *conv[1:4], 2, False)),
        ("input_relevance", (r, [w3, w3], [u, u], [x3, None], [6, 6], *conv[1:4], 1, True)),
        ("input_flat_relevance", (r, u, 3, [3, 3], [6, 6], *conv[1:4], False)),
        ("input_flat_relevance", (r, u, 3, [3, 3], [6, 6], *conv[1:4], True)),
        ("pool_max_relevance", (r, index, None, [6, 6])),
        ("pool_max_relevance", (r, index, u, [6, 6])),
        ("pool_ties_relevance", (r, x, y, u, [2, 2], [2, 2], [0, 0], [1, 1])),
        ("pool_avg_relevance", (r, None, [6, 6], [2, 2], [2, 2], [0, 0], False, True, None)),
        ("pool_avg_relevance", (r, None, [3, 3], [1, 1], [1, 1], [0, 0], False, True, None)),
        ("pool_adaptive_avg_relevance", (r, None, [6, 6])),
        ("pool_adaptive_avg_relevance", (r, None, [3, 3])),
        ("pool_adaptive_avg_relevance", (r[..., :1, :1], None, [3, 3])),
        *[("elementwise_pooled_coefficients", (x, x, x, rule, 1.0, 1e-6, *pool, True))
          for rule in ("epsilon", "zplus", "gamma")],
        (
            "elementwise_pooled_coefficients",
            (x[..., :5], None, None, "epsilon", 1.0, 1e-6, [3, 2], [2, 2], [1, 0], [1, 2], True),
        ),
        ("attention_forward", (q, k, v, *attention)),
        ("attention_forward", (q, k, v[..., :3], None, True, 0.5, 2.0)),
        ("attention_relevance", (g, q, k, v, o, log_sum, *attention, 0.25, 0.25, 0.5, 0.0)),
        ("attention_relevance", (g, q, k, v, o, log_sum, mask.float(), True, 0.5, 2.0, 0.25, 0.25, 0.5, 0.1)),
        ("attention_value_relevance", (g, q, k, log_sum, *attention)),
        ("attention_up", (q, k, v, o, log_sum, None, None, torch.randn(2, 3, 2, 6, 4), *attention, 0.0, 0.0, 1.0, 0.0)),
        ("attention_up", (q, k, v, o, log_sum, torch.randn(2, 3, *q.shape[1:]), torch.randn(2, 3, *k.shape[1:]), None,
                          mask.float(), True, 0.5, 2.0, 0.25, 0.25, 0.5, 0.1)),
        ("norm_relevance", (flow, None, z[:, :1], False)),
        ("norm_relevance", (flow, z[0], z[:, :1], True)),
        ("recurrence_relevance", (r_t, None, u_t, e_t, *[None] * 8, e_t.unsqueeze(2).expand(-1, -1, 3, -1) / 8)),
        ("recurrence_relevance", (r_t, r_t[:, :, 0], u_t.repeat(2, 1), e_t, e_t, e_t, e_t.unsqueeze(2), e_t, e_t,
                                  e_t, None, u_t.repeat(2, 1), None)),
        *[("elementwise_coefficients", (z, z, z, z, rule, 1.0, 1e-6)) for rule in ("epsilon", "zplus", "gamma")],
    ]  # fmt: skip


def checked() -> list[object]:
    """The last sample of each operation, which has the most arguments; the others in a full run."""
    last = {op: i for i, (op, _) in enumerate(samples())}
    marks = lambda i, op: () if last[op] == i else pytest.mark.full  # noqa: E731
    return [pytest.param(op, given, marks=marks(i, op), id=op) for i, (op, given) in enumerate(samples())]


@pytest.mark.parametrize(("op", "arguments"), checked())
def test_opcheck(op, arguments):
    torch.use_deterministic_algorithms(False)  # opcheck compares what it left uninitialised
    opcheck(getattr(torch.ops.fastlrp, op), arguments, test_utils=("test_schema", "test_faketensor"))
    needs_gradient = (arguments[0].clone().requires_grad_(), *arguments[1:])
    opcheck(getattr(torch.ops.fastlrp, op), needs_gradient)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize(("op", "arguments"), samples(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_backend_runs_below_the_dispatcher(op, arguments, backend):
    call = getattr(torch.ops.fastlrp, op)
    expected = call(*arguments, backend="reference")
    contexts = [torch.enable_grad, torch.no_grad]
    # The definition takes gradients, which inference mode forbids.
    for context in contexts if backend == "reference" else [*contexts, torch.inference_mode]:
        with context():
            got = call(*arguments, backend=backend)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("op", dispatch.OPS)
def test_schema_is_the_signature_of_the_definition(op):
    names = [a.name for a in getattr(torch.ops.fastlrp, op).default._schema.arguments]
    assert names == [*inspect.signature(reference(op)).parameters, "backend"]
    assert names == list(inspect.signature(getattr(functional, op)).parameters)
    torch_backend = dispatch.select(op, "torch", torch.device("cpu"), torch.float32).call
    assert names[:-1] == list(inspect.signature(torch_backend).parameters)
    assert set(library.SCHEMAS) == set(dispatch.OPS)


@pytest.mark.parametrize("op", cpu_ops())
def test_kernels_take_the_arguments_by_name(op):
    values = next(arguments for name, arguments in samples() if name == op)
    named = dict(zip(inspect.signature(reference(op)).parameters, values, strict=True))
    selected = dispatch.select(op, "cpu", torch.device("cpu"), torch.float32)
    torch.testing.assert_close(selected.call(**named), reference(op)(**named))


def test_dynamic_shapes_export():
    class Layer(torch.nn.Module):
        def forward(self, relevance, index):
            return functional.pool_max_relevance(relevance, index, None, [6, 6])

    batch = torch.export.Dim("batch", min=2)
    r, index = torch.randn(3, 4, 5, 3, 3), torch.randint(0, 36, (3, 5, 3, 3))
    program = torch.export.export(Layer(), (r, index), dynamic_shapes=({0: batch}, {0: batch}))
    r, index = torch.randn(7, 4, 5, 3, 3), torch.randint(0, 36, (7, 5, 3, 3))
    torch.testing.assert_close(program.module()(r, index), reference("pool_max_relevance")(r, index, None, [6, 6]))
