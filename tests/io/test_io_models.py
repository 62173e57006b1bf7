"""Models of the LRP Toolbox: its own files, both variants of text, every layer, and what is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn as tnn
from torch.nn import functional as F

from fastlrp import nn
from fastlrp.io import read_model, write_model
from tests import goldens
from tests.io import toolbox
from tests.reference.lenet import images_to_input

DTYPES = (torch.float32, torch.float64)


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """The same layers with the same weights, bit for bit."""
    assert str(a) == str(b)
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert value.dtype == b.state_dict()[key].dtype
        bits = torch.int64 if value.dtype == torch.float64 else torch.int32
        assert torch.equal(value.view(bits), b.state_dict()[key].view(bits)), key


def golden(name: str) -> str:
    return str(goldens.path(f"lrp_toolbox/{name}"))


@goldens.needs_goldens
@pytest.mark.parametrize("dtype", DTYPES)
def test_text_and_pickle_of_lenet_are_equal(dtype):
    same(read_model(golden("LeNet-5.txt"), dtype), read_model(golden("LeNet-5.nn"), dtype))


@goldens.needs_goldens
@pytest.mark.parametrize("name", ["LeNet-5.txt", "LeNet-5.nn"])
def test_lenet_gives_the_toolbox_logits(name):
    images = goldens.load("lrp_toolbox/mnist_test_1000.npz")["images"][:10]
    expected = goldens.double(goldens.load("lrp_toolbox/lenet5_mnist_relevance.npz")["logits"])
    net = read_model(golden(name), torch.float64)
    assert not net.training
    logits = net(images_to_input(goldens.double(images))).detach()
    # Measured 2.5e-8: the goldens are float32.
    assert float((logits - expected).norm() / expected.norm()) <= 5e-8


@goldens.needs_goldens
@pytest.mark.parametrize(("name", "number_format"), [("xor_net_small.txt", None), ("LeNet-5.txt", ".3f")])
def test_the_toolbox_files_are_written_again_byte_by_byte(name, number_format, tmp_path):
    write_model(read_model(golden(name), torch.float64), tmp_path / "again.txt", number_format=number_format)
    assert (tmp_path / "again.txt").read_bytes() == goldens.path(f"lrp_toolbox/{name}").read_bytes()


@goldens.needs_goldens
def test_xor_net_decides_exclusive_or():
    net = read_model(golden("xor_net_small.txt"), torch.float64)
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    probabilities = net(x)
    assert probabilities.argmax(1).tolist() == [0, 1, 1, 0]
    # By y = x W + B, line by line of the file.
    lines = goldens.path("lrp_toolbox/xor_net_small.txt").read_text().split("\n")
    for at, sizes in ((1, (2, 3)), (5, (3, 3)), (9, (3, 2))):
        W, B = (
            torch.tensor([float(word) for word in line.split()], dtype=torch.float64) for line in lines[at : at + 2]
        )
        x = x @ W.reshape(sizes) + B
        x = torch.softmax(x, 1) if at == 9 else torch.tanh(x)
    assert torch.allclose(probabilities, x, atol=1e-14, rtol=0)


@goldens.needs_goldens
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["line", "rows"])
def test_text_round_trip_is_exact(dtype, variant, tmp_path):
    net = read_model(golden("xor_net_small.txt"), dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 / 3)
    write_model(net, tmp_path / "net.txt", variant)
    same(read_model(tmp_path / "net.txt", dtype), net)
    assert (tmp_path / "net.txt").read_text().count("\n") == {"line": 12, "rows": 12 + (2 - 1) + (3 - 1) + (3 - 1)}[
        variant
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_survives_text(dtype, tmp_path):
    """Random bits, subnormal numbers, powers of two and their neighbours, signed zeros, the largest numbers."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    limits = torch.iinfo(integer)
    random = torch.randint(limits.min, limits.max, (20_000,), dtype=integer, generator=torch.Generator().manual_seed(0))
    powers = torch.exp2(torch.arange(-126.0, 127.0, dtype=dtype))
    info = torch.finfo(dtype)
    edges = torch.tensor([0.0, -0.0, info.max, -info.max, info.tiny, info.tiny * info.eps, 0.1], dtype=dtype)
    values = torch.cat([random.view(dtype), powers, powers * (1 + info.eps), powers * (1 - info.eps / 2), edges])
    values = values[torch.isfinite(values)]
    net = nn.Sequential(nn.Linear(len(values), 1)).to(dtype)
    with torch.no_grad():
        net[0].weight.copy_(values)
    write_model(net, tmp_path / "net.txt")
    same(read_model(tmp_path / "net.txt", dtype), net)


def test_float32_is_written_with_the_fewest_digits(tmp_path):
    net = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.1, -2.0]]))
        net[0].bias.fill_(1e-7)
    write_model(net, tmp_path / "net.txt")
    assert (tmp_path / "net.txt").read_text() == "Linear 2 1\n0.1 -2.0\n1e-07\n"


@pytest.mark.parametrize("variant", ["line", "rows"])
def test_both_variants_of_text_are_told_apart(variant, tmp_path):
    rows = {"line": "1 2 3 4 5 6\n", "rows": "1 2 3\n4 5 6\n"}[variant]
    (tmp_path / "net.txt").write_text(f"Linear 2 3\n{rows}7 8 9\n\n")
    net = read_model(tmp_path / "net.txt")
    assert net[0].weight.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert net[0].bias.tolist() == [7, 8, 9]


@pytest.mark.parametrize(("m", "n"), [(1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("variant", ["line", "rows"])
def test_sizes_of_one_read_the_same_in_both_variants(m, n, variant, tmp_path):
    net = nn.Sequential(nn.Linear(m, n))
    write_model(net, tmp_path / "net.txt", variant)
    same(read_model(tmp_path / "net.txt"), net)


def test_line_ends_of_windows_and_blanks_at_the_end(tmp_path):
    (tmp_path / "net.txt").write_bytes(toolbox.TEXT.replace("\n", " \r\n").encode() + b"\r\n \r\n")
    (tmp_path / "plain.txt").write_text(toolbox.TEXT)
    same(read_model(tmp_path / "net.txt"), read_model(tmp_path / "plain.txt"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("one_file", [False, True])
def test_pickles_of_python_3_and_of_the_first_version(protocol, one_file, tmp_path):
    (tmp_path / "net.nn").write_bytes(toolbox.dumps(toolbox.network(), protocol, one_file))
    net = read_model(tmp_path / "net.nn", torch.float64)
    kinds = [type(module).__name__ for module in net]
    assert kinds == ["Convolution", "ReLU", "SumPool2d", "MaxPool2d", "Flatten", "Linear", "Softmax"]
    assert (net[2].pool, net[2].stride, net[3].pool, net[3].stride) == ((2, 2), (1, 1), (2, 1), (1, 2))
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    assert torch.allclose(net(x), by_hand(x), atol=1e-12, rtol=0)


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """The network of :func:`toolbox.network`, in NHWC, window by window."""
    convolution, *_, dense, _ = toolbox.network()
    x = x.permute(0, 2, 3, 1)
    W, B = torch.from_numpy(convolution.W), torch.from_numpy(convolution.B)
    maps = torch.stack(
        [torch.einsum("bhwd,hwdn->bn", x[:, i : i + 3, j : j + 3], W) + B for i in range(4) for j in range(4)], 1
    )
    x = maps.reshape(len(x), 4, 4, -1).clamp(min=0)
    x = torch.stack([x[:, i : i + 2, j : j + 2].sum((1, 2)) / 2 for i in range(3) for j in range(3)], 1)
    x = x.reshape(len(x), 3, 3, -1)
    x = torch.stack([x[:, i : i + 2, j].amax(1) for i in range(2) for j in (0, 2)], 1)
    return torch.softmax(x.reshape(len(x), -1) @ torch.from_numpy(dense.W) + torch.from_numpy(dense.B), 1)


@pytest.mark.parametrize("form", ["<f4", ">f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_byte_orders_and_column_order_in_pickles(form, order, tmp_path):
    W = np.array([[1, 2, 3], [4, 5, 6.5]])
    layers = [toolbox.linear(2, 3, W=np.array(W, form, order=order), B=np.array([1, 2, 3], form))]
    for protocol in (2, 5):
        (tmp_path / "net.nn").write_bytes(toolbox.dumps(layers, protocol))
        assert read_model(tmp_path / "net.nn")[0].weight.T.tolist() == W.tolist()


def test_pickle_of_python_2_in_text_protocol(tmp_path):
    """Protocol 0, as Python 2 writes it without being asked for another: bytes are escaped in quoted strings."""
    content = repr(np.array([[1.0], [-2.0]]).tobytes())[1:].replace('"', "'")
    array = (
        "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n({shape}t"
        "cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS{content}\ntb"
    )
    weights = array.format(shape="L2L\nL1L\n", content=content)
    bias = array.format(shape="L1L\n", content=repr(np.array([0.5]).tobytes())[1:])
    text = (
        "(imodules.sequential\nSequential\n(dS'modules'\n(lp1\n(imodules.linear\nLinear\n"
        f"(dS'W'\n{weights}sS'B'\n{bias}sS'm'\nI2\nsbasb."
    )
    (tmp_path / "net.nn").write_bytes(text.encode("latin-1"))
    net = read_model(tmp_path / "net.nn", torch.float64)
    assert net[0].weight.tolist() == [[1.0, -2.0]]
    assert net[0].bias.tolist() == [0.5]


def test_a_name_without_a_known_suffix_is_judged_by_its_content(tmp_path):
    (tmp_path / "text").write_text(toolbox.TEXT)
    (tmp_path / "pickle").write_bytes(toolbox.dumps([toolbox.linear()]))
    assert len(read_model(tmp_path / "text")) == 4
    assert len(read_model(tmp_path / "pickle")) == 1


def test_reading_leaves_the_random_numbers_alone(tmp_path):
    (tmp_path / "net.txt").write_text(toolbox.TEXT)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    net = read_model(tmp_path / "net.txt")
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in net.parameters())


# Writing other people's networks


def torch_network(flatten: torch.nn.Module) -> torch.nn.Sequential:
    features = tnn.Sequential(tnn.Conv2d(1, 3, 3), tnn.ReLU(), tnn.MaxPool2d((2, 1), stride=(2, 1)))
    return tnn.Sequential(
        features, flatten, tnn.Tanh(), tnn.Linear(3 * 3 * 4, 5, bias=False), tnn.ReLU(), tnn.Linear(5, 2)
    )


def test_a_torch_network_is_turned_into_the_toolbox_order(tmp_path):
    net = torch_network(tnn.Flatten()).double()
    write_model(net, tmp_path / "net.txt", input_shape=(1, 8, 6))
    x = torch.rand(4, 1, 8, 6, dtype=torch.float64)
    back = read_model(tmp_path / "net.txt", torch.float64)
    assert torch.allclose(back(x), net(x), atol=1e-14)
    assert back[5].bias.tolist() == [0] * 5
    assert not torch.equal(back[5].weight, net[3].weight)


def test_one_module_in_two_places_is_written_twice(tmp_path):
    relu = tnn.ReLU()
    net = tnn.Sequential(tnn.Linear(2, 2), relu, tnn.Linear(2, 2), relu)
    write_model(net, tmp_path / "net.txt")
    assert [line for line in (tmp_path / "net.txt").read_text().split("\n") if line == "Rect"] == ["Rect", "Rect"]


@pytest.mark.parametrize("channels_last", [(1, 8, 6), None])
def test_the_order_is_settled_where_it_cannot_matter(channels_last, tmp_path):
    net = tnn.Sequential(tnn.Conv2d(1, 4, 3), tnn.Flatten(), tnn.Linear(4, 2))
    write_model(net, tmp_path / "net.txt", input_shape=None if channels_last is None else (1, 3, 3))
    x = torch.rand(2, 1, 3, 3)
    assert torch.allclose(read_model(tmp_path / "net.txt")(x), net(x))


def test_an_mlp_on_images_needs_to_know_their_channels(tmp_path):
    net = tnn.Sequential(tnn.Flatten(), tnn.Linear(2 * 3 * 3, 2))
    with pytest.raises(ValueError, match=r"module 0 \(Flatten\) puts channels first.*give input_shape="):
        write_model(net, tmp_path / "net.txt")
    write_model(net, tmp_path / "net.txt", input_shape=(2, 3, 3))
    x = torch.rand(4, 2, 3, 3)
    assert torch.allclose(read_model(tmp_path / "net.txt")(x), net(x), atol=1e-6)
    write_model(net, tmp_path / "flat.txt", input_shape=(18,))
    assert torch.equal(read_model(tmp_path / "flat.txt")[1].weight, net[1].weight)


def test_half_precision_is_written_as_it_is(tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        net = nn.Sequential(nn.Linear(3, 2)).to(dtype)
        write_model(net, tmp_path / "net.txt")
        back = read_model(tmp_path / "net.txt", dtype)
        assert torch.equal(back[0].weight, net[0].weight)


class Doubled(tnn.Linear):
    def forward(self, x):
        return 2 * F.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ([tnn.BatchNorm2d(3)], TypeError, r"module 0 \(BatchNorm2d\) cannot be written: expected Linear, Convolution"),
        ([tnn.Sequential(tnn.ReLU(), tnn.Dropout())], TypeError, r"module 0.1 \(Dropout\) cannot be written"),
        ([Doubled(2, 2)], TypeError, r"module 0 \(Doubled\) cannot be written"),
        ([nn.AvgPool2d((2, 2))], TypeError, r"module 0 \(AvgPool2d\) cannot be written.*SumPool2d, the sum divided by"),
        ([tnn.Conv2d(1, 1, 3, padding=1)], ValueError, r"module 0 \(Conv2d\): padding=\(1, 1\), the Toolbox's"),
        ([tnn.Conv2d(1, 1, 3, padding="same")], ValueError, "padding=same"),
        ([tnn.Conv2d(1, 1, 3, dilation=2)], ValueError, r"dilation=\(2, 2\)"),
        ([tnn.Conv2d(2, 2, 3, groups=2)], ValueError, "groups=2"),
        ([tnn.MaxPool2d(2, ceil_mode=True)], ValueError, "ceil_mode=True"),
        ([tnn.MaxPool2d(3, padding=1)], ValueError, r"padding=\(1, 1\)"),
        ([tnn.Softmax(2)], ValueError, "dim=2"),
        ([tnn.Flatten(0)], ValueError, "start_dim=0"),
        ([tnn.Linear(2, 3), tnn.Linear(4, 2)], ValueError, r"module 1 \(Linear\): Linear 4 2 takes 4 features, but 3"),
        ([tnn.Conv2d(1, 2, 3), tnn.Linear(4, 2)], ValueError, "a Flatten is missing"),
        ([tnn.Conv2d(1, 2, 3), tnn.Flatten()], ValueError, "in the order channels, rows, columns"),
        ([], ValueError, "no layers"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_name(modules, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write_model(tnn.Sequential(*modules), tmp_path / "net.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "row"}, "unknown variant 'row': expected one of line, rows"),
        ({"number_format": "{:.3f}"}, "number_format must be None or such as '.3f'"),
        ({"input_shape": (1, 8)}, r"input_shape must be \(channels, height, width\)"),
        (
            {"input_shape": (1, 2, 2)},
            r"module 0.0 \(Conv2d\): .* has a window 3 high, but the maps before it are 2 high",
        ),
        ({"variant": "rows", "input_shape": (1, 8, 6)}, "variant 'rows' has no Convolution"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_model(torch_network(tnn.Flatten()), tmp_path / "net.txt", **arguments)


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    net = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight[0, 1] = float("nan")
    with pytest.raises(ValueError, match=r"module 0 \(Linear\) has NaN or infinite weights"):
        write_model(net, tmp_path / "net.txt")
    with pytest.raises(
        TypeError, match=r"model must be a fastlrp\.nn\.Sequential or torch\.nn\.Sequential, got Linear"
    ):
        write_model(net[0], tmp_path / "net.txt")
    with pytest.raises(ValueError, match=r"name of a pickle.*name it \*.txt"):
        write_model(net, tmp_path / "net.nn")
