"""Packed sequences: each sample as it is alone without its padding, which gets exactly nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlrp
from fastlrp import composites, rules
from tests.models.recurrent import LAYERS, LastValid, by_rule, sequences

LENGTHS = torch.tensor([2, 5, 3])
SORTED = torch.tensor([5, 3, 2])


class Packer(nn.Module):
    """Packs, reads, and unpacks or takes the last states."""

    def __init__(self, layer: nn.Module, read: str, size: int, ordered: bool = False, total: bool = False) -> None:
        super().__init__()
        self.layer, self.read, self.ordered, self.total = layer, read, ordered, total
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        first: bool = self.layer.batch_first  # type: ignore[assignment]
        x = x if first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=self.ordered)
        y, last = self.layer(packed)
        if self.read == "states":
            states = last if isinstance(last, tuple) else (last,)
            return self.head(torch.cat([s.transpose(0, 1).flatten(1) for s in states], 1))  # type: ignore[no-any-return]
        total = x.shape[1 if first else 0] if self.total else None
        padded, sizes = pad_packed_sequence(y, batch_first=first, total_length=total)
        padded = padded if first else padded.transpose(0, 1)
        found: Tensor = {
            "mean": lambda: padded.sum(1) / sizes.unsqueeze(1),
            "last": lambda: padded[torch.arange(len(sizes)), sizes - 1],
            "all": lambda: padded.mean(1),
        }[self.read]()
        return self.head(found)  # type: ignore[no-any-return]


def relevance(explainer: fastlrp.Explainer, x: Tensor, lengths: Any) -> Tensor:
    found = explainer((x, lengths), "all")
    return found[0] if isinstance(found, tuple) else found


def check(model: nn.Module, rule: rules.Rule, lengths: Tensor = LENGTHS) -> None:
    x, model = sequences(), model.double().eval()
    explainer = fastlrp.Explainer(model, by_rule(rule))
    got = relevance(explainer, x, lengths)
    assert torch.allclose(explainer.forward((x, lengths)).output, model(x, lengths), atol=1e-14)
    found = explainer.verify((x, lengths), "all")
    assert found.ok, str(found)
    assert found.max_error < 1e-11, str(found)
    for b, n in enumerate(lengths.tolist()):
        assert not got[b, :, n:].any()
        assert got[b, :, :n].any()
        assert torch.allclose(relevance(explainer, x[b : b + 1, :n], lengths[b : b + 1])[0], got[b, :, :n], atol=1e-12)
        if model.read != "mean" or b == 0:
            assert torch.allclose(relevance(explainer, x[b : b + 1], lengths[b : b + 1])[0], got[b], atol=1e-12)


@pytest.mark.each_value
@pytest.mark.parametrize("read", ["mean", "states"])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_both_directions_begin_at_the_samples_own_ends(name: str, read: str) -> None:
    layer = LAYERS[name](4, 6, 2, bidirectional=True, batch_first=True)
    size = {"mean": 12, "states": 48 if name == "lstm" else 24}[read]
    check(Packer(layer, read, size), rules.Recurrent(stabilizer=1e-3))


@pytest.mark.parametrize(("ordered", "batch_first"), [(True, True), (False, False)])
def test_either_order_and_layout(ordered: bool, batch_first: bool) -> None:
    layer = nn.LSTM(4, 6, bidirectional=True, batch_first=batch_first)
    check(Packer(layer, "last", 12, ordered), rules.Recurrent("uniform", 1e-3), SORTED if ordered else LENGTHS)


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}])
def test_bias_factor(options: dict[str, int]) -> None:
    layer = nn.LSTM(4, 6, bidirectional=True, batch_first=True, **options)
    check(Packer(layer, "states", 12 + 2 * options.get("proj_size", 6)), rules.Recurrent("signal", 1e-3, 1.0))


def test_equals_the_layer_without_packing() -> None:
    """An LSTM that reads forward: the last valid step of the padded sequences, by hand."""
    packer = Packer(nn.LSTM(4, 6, batch_first=True), "last", 6).double().eval()
    both = (fastlrp.Explainer(model, "epsilon") for model in (packer, LastValid(packer.layer, packer.head)))
    got, expected = (relevance(explainer, sequences(), LENGTHS) for explainer in both)
    assert torch.allclose(got, expected, atol=1e-14)


def test_gradient_preset_equals_autograd() -> None:
    model = Packer(nn.GRU(4, 6, bidirectional=True, batch_first=True), "mean", 12).double().eval()
    x = sequences().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, LENGTHS)[:, 1].sum(), x)
    got = fastlrp.Explainer(model, composites.gradient())((x.detach(), LENGTHS), [1], initial="one")
    assert torch.allclose(got[0][:, 0] if isinstance(got, tuple) else got[:, 0], gradient, atol=1e-14)


def test_lengths_from_ids_and_rows_of_a_packed_sequence() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer, self.head = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            packed = pack_padded_sequence(ids, (ids != 0).sum(1).cpu(), batch_first=True, enforce_sorted=False)
            rows = PackedSequence(self.embedding(packed.data), *packed[1:])
            return self.head(self.layer(rows)[1][-1])  # type: ignore[no-any-return]

    model, ids = Text().double().eval(), torch.tensor([[3, 4, 0, 0], [1, 2, 3, 4], [5, 0, 0, 0]])
    explainer = fastlrp.Explainer(model, "epsilon")
    got = explainer(ids, "all")
    assert not got[ids.unsqueeze(1).expand_as(got) == 0].any()
    assert explainer.verify(ids, "all").ok
    assert torch.allclose(explainer(ids[:1, :2], "all")[0], got[0, :, :2], atol=1e-14)


def test_lists_of_lengths() -> None:
    class Fixed(Packer):
        lengths = (4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            packed = pack_padded_sequence(x, list(self.lengths), batch_first=True)
            return self.head(self.layer(packed)[1][-1])  # type: ignore[no-any-return]

    model = Fixed(nn.GRU(4, 6, batch_first=True), "", 6).double().eval()
    assert not fastlrp.Explainer(model, "epsilon")(sequences(), "all")[:, :, 4:].any()
    model.lengths = (5, 3, 2)
    with pytest.raises(fastlrp.CaptureError, match=r"as a tensor \(B,\) beside x"):
        fastlrp.Explainer(model, "epsilon")(sequences(), "all")


def test_an_output_that_depends_on_the_longest_of_the_batch() -> None:
    model, x = Packer(nn.LSTM(4, 6, batch_first=True), "all", 6).double().eval(), sequences()
    explainer = fastlrp.Explainer(model, "epsilon")
    relevance(explainer, x, LENGTHS)
    with pytest.raises(ValueError, match=r"longest sequence of this batch has 2 steps, the input 5.*x\[:, :2\]"):
        relevance(explainer, x[:1], LENGTHS[:1])
    model.total = True
    assert relevance(fastlrp.Explainer(model, "epsilon"), x[:1], LENGTHS[:1]).shape == (1, 3, 5, 4)


@pytest.mark.parametrize("lengths", [[2, 0, 3], [2, 6, 3]])
def test_impossible_lengths(lengths: list[int]) -> None:
    model = Packer(nn.LSTM(4, 6, batch_first=True), "mean", 6).eval()
    explainer = fastlrp.Explainer(model, "epsilon")
    with pytest.raises(ValueError, match="lengths must be between 1 and the number of steps, 5, got"):
        relevance(explainer, torch.randn(3, 5, 4), torch.tensor(lengths))


def test_lengths_that_are_no_tensor_and_samples_in_another_order() -> None:
    class Lists(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths.tolist(), batch_first=True, enforce_sorted=False)
            return self.head(self.layer(packed)[1][-1])  # type: ignore[no-any-return]

    class Sorts(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            lengths, order = lengths.sort(descending=True)
            packed = pack_padded_sequence(x[order], lengths, batch_first=True)
            return self.head(self.layer(packed)[1][-1][order.argsort()])  # type: ignore[no-any-return]

    for make, message in ((Lists, r"lengths\.tolist\(\)"), (Sorts, "enforce_sorted=False")):
        model = make(nn.GRU(4, 6, batch_first=True), "", 6).eval()
        with pytest.raises(fastlrp.CaptureError, match=message):
            relevance(fastlrp.Explainer(model, "epsilon"), torch.randn(3, 5, 4), LENGTHS)


def test_sizes_of_a_packed_sequence_are_not_known() -> None:
    class Counts(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.layer(packed)[1][-1]) * packed.batch_sizes.sum()  # type: ignore[no-any-return]

    model = Counts(nn.GRU(4, 6, batch_first=True), "", 6).eval()
    with pytest.raises(fastlrp.CaptureError, match=r"reads batch_sizes.sum of a packed sequence"):
        relevance(fastlrp.Explainer(model, "epsilon"), torch.randn(3, 5, 4), LENGTHS)


class Reads(nn.Module):
    """The last states, and something else that ``read`` makes of them and the packed sequence."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.layer, self.head, self.read = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3), read

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, h = self.layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return self.read(self.head(h[-1]), y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("read", "named"),
    [
        (lambda h, y: h / len(y.data), r"len\(\.data\)"),
        (lambda h, y: h / len(y.data[:, 0]), r"len\(\.data\)"),
        (lambda h, y: h * 2 if len(y.data.relu()) > 11 else h, r"len\(\.data\)"),
        (lambda h, y: h * torch.ones(len(y.data)).sum(), r"len\(\.data\)"),
        (lambda h, y: h / y.data.numel(), r"\.data\.numel"),
        (lambda h, y: h + sum(0.01 for _ in y.data), "row after row"),
        (lambda h, y: h + len(y.batch_sizes), r"len\(batch_sizes\)"),
        (lambda h, y: h * y.batch_sizes.size(0), r"batch_sizes\.size"),
        (lambda h, y: h * (y.batch_sizes > 1).sum(), "reads batch_sizes of"),
    ],
)
def test_counts_of_rows_are_not_known(read: Any, named: str) -> None:
    with pytest.raises(fastlrp.CaptureError, match=rf"{named}.*not known before the lengths"):
        fastlrp.Explainer(Reads(read).double().eval(), "epsilon").forward((sequences(), LENGTHS))


@pytest.mark.parametrize(
    "read",
    [
        lambda h, y: h + sum(0.01 for _ in range(y.data.shape[0])),
        lambda h, y: len(h) * h / y.data.size(0),
        lambda h, y: h + y.data.mean(0)[:3] * 0.1 if len(h) else h,
    ],
)
def test_another_output_than_the_models_is_refused(read: Any) -> None:
    with pytest.raises(fastlrp.CaptureError, match=r"another output on this batch|mixes samples"):
        fastlrp.Explainer(Reads(read).double().eval(), "epsilon").forward((sequences(), LENGTHS))


@pytest.mark.parametrize("how", ["shape", "fixed", "flat"])
def test_a_branch_on_the_number_of_rows_that_other_lengths_do_not_take(how: str) -> None:
    def read(h: Tensor, y: Any) -> Tensor:
        count = len(h) if how == "fixed" else 3
        rows = y.data.flatten().shape[0] // 6 if how == "flat" else y.data.shape[0]
        return h * count if rows > 9 else h

    model, x = Reads(read).double().eval(), sequences()
    explainer = fastlrp.Explainer(model, "epsilon")
    assert torch.allclose(explainer.forward((x, LENGTHS)).output, model(x, LENGTHS), atol=1e-14)
    with pytest.raises(fastlrp.CaptureError, match="another output on this batch"):
        explainer.forward((x, torch.tensor([1, 5, 1])))


def test_sizes_of_rows_may_go_into_shapes() -> None:
    class Heads(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            y, _ = self.layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            rows, size = y.data.shape
            heads = y.data.view(rows, 2, size // 2).relu().reshape(y.data.size(0), -1)
            padded, _ = pad_packed_sequence(PackedSequence(heads, *y[1:]), batch_first=True)
            return self.head(padded.sum(1))  # type: ignore[no-any-return]

    check(Heads(nn.GRU(4, 6, batch_first=True), "", 6), rules.Recurrent(stabilizer=1e-3))


@pytest.mark.parametrize("read", ["states", "mean"])
def test_lengths_must_be_sorted_where_the_model_wants_them_so(read: str) -> None:
    model, x = Packer(nn.GRU(4, 6, batch_first=True), read, 6, ordered=True).double().eval(), sequences()
    explainer = fastlrp.Explainer(model, "epsilon")
    with pytest.raises(ValueError, match=r"decreasing order, got \[2, 5, 3\].*enforce_sorted=False"):
        explainer.forward((x, LENGTHS))
    for _ in range(2):
        assert torch.allclose(explainer.forward((x, SORTED)).output, model(x, SORTED), atol=1e-14)
        with pytest.raises(ValueError, match=r"decreasing order, got \[2, 5, 3\].*enforce_sorted=False"):
            explainer.forward((x, LENGTHS))


def test_lengths_of_what_is_packed_and_unpacked_alone() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(packed, batch_first=True)[0].sum(1)

    explainer = fastlrp.Explainer(Sum(), "epsilon")
    for lengths in ([2, 0, 3], [2, 5, 3], [2, 6, 3]):
        if lengths == [2, 5, 3]:
            assert torch.allclose(explainer.forward((sequences(), LENGTHS)).output, Sum()(sequences(), LENGTHS))
            continue
        with pytest.raises(ValueError, match="between 1 and the number of steps, 5, got"):
            explainer.forward((sequences(), torch.tensor(lengths)))


def test_sequences_cut_inside_the_model() -> None:
    class Cuts(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            longest = int(lengths.max()) if self.read == "int" else lengths.max()
            packed = pack_padded_sequence(x[:, :longest], lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.layer(packed)[1][-1])  # type: ignore[no-any-return]

    class Short(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(pad_packed_sequence(packed, batch_first=True, total_length=3)[0].sum(1))  # type: ignore[no-any-return]

    gru, cut = nn.GRU(4, 6, batch_first=True), "ut the input before the model, or leave the cut away"
    cases = (
        (Cuts(gru, "int", 6), cut),
        (Cuts(gru, "tensor", 6), cut),
        (Short(gru, "", 4), "fewer steps than the input has, 5"),
    )
    for model, message in cases:
        with pytest.raises(fastlrp.CaptureError, match=message):
            fastlrp.Explainer(model.double().eval(), "epsilon").forward((sequences(), torch.tensor([2, 3, 3])))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", ["gru", "rnn"])
def test_one_capture_is_for_every_number_of_samples(name: str, batch_first: bool) -> None:
    """As many samples as steps, or one, do not make the batch another axis."""
    model = Packer(LAYERS[name](4, 6, batch_first=batch_first), "states", 6).double().eval()
    explainer, x, lengths = fastlrp.Explainer(model, "epsilon"), sequences()[:, :3], torch.tensor([2, 3, 1])
    whole = relevance(explainer, x, lengths)
    for b in range(3):
        assert torch.allclose(relevance(explainer, x[b : b + 1], lengths[b : b + 1])[0], whole[b], atol=1e-14)
    assert torch.allclose(relevance(explainer, x[:2], lengths[:2]), whole[:2], atol=1e-14)
    assert len(explainer._plans._kept) == 1
    alone = relevance(fastlrp.Explainer(model, "epsilon"), x[:1], lengths[:1])
    assert torch.allclose(alone[0], whole[0], atol=1e-14)


def test_one_capture_where_an_lstm_gets_its_states() -> None:
    class Given(Packer):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            first = x.mean(1).unsqueeze(0)
            return self.head(self.layer(packed, (first, first + 1))[1][0][-1])  # type: ignore[no-any-return]

    explainer = fastlrp.Explainer(Given(nn.LSTM(4, 4, batch_first=True), "", 4).double().eval(), "epsilon")
    whole = relevance(explainer, sequences(), LENGTHS)
    assert torch.allclose(relevance(explainer, sequences()[:1], LENGTHS[:1])[0], whole[0], atol=1e-14)
    assert len(explainer._plans._kept) == 1


def test_lengths_of_another_shape() -> None:
    model = Packer(nn.GRU(4, 6, batch_first=True), "states", 6).double().eval()
    with pytest.raises(fastlrp.CaptureError, match=r"one entry for each sample, 3, got \(3, 1\)"):
        fastlrp.Explainer(model, "epsilon").forward((sequences(), LENGTHS.unsqueeze(1)))


def test_other_threads_pack_meanwhile() -> None:
    from fastlrp.capture.trace.packed import kept_padded, pack

    x = sequences()
    expected = pack_padded_sequence(x, SORTED, batch_first=True)
    with kept_padded():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            got = pool.submit(pack_padded_sequence, x, SORTED, batch_first=True).result()
        assert type(pack(x, SORTED, True, True).batch_sizes).__name__ == "Packing"
    assert torch.equal(got.data, expected.data)
    assert torch.equal(got.batch_sizes, expected.batch_sizes)
    assert torch.equal(pack_padded_sequence(x, SORTED, batch_first=True).data, expected.data)
