"""What a replay recorded from one input holds for every other: nothing on its way was decided by the numbers."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from fastlrp import Explainer
from fastlrp.run.replay import Replay
from tests.api.models import make, relative_error, samples
from tests.api.replays import replay_of
from tests.api.tape import Tape


class Attends(nn.Module):
    """(B, 4, 6) and a mask (B, 4, 4) -> (B, 3): attention with two heads, a gate, a slope, and the mean."""

    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.wide, self.out, self.gate, self.head = (nn.Linear(6, n) for n in (18, 6, 6, 3))
        self.eager = eager

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.wide(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        if self.eager:
            p = ((q @ k.mT) / 3**0.5 + mask.unsqueeze(1)).softmax(-1)
            y = p @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask.unsqueeze(1))
        y = F.layer_norm(x + self.out(y.transpose(1, 2).flatten(2)), (6,))
        return self.head((F.gelu(y) * F.silu(self.gate(x))).mean(1))


def attending(eager: bool, composite: str = "attnlrp") -> Explainer:
    torch.manual_seed(0)
    return Explainer(Attends(eager).double().eval(), composite, backend="torch")


def sequences(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NOTHING = torch.finfo(torch.float64).min


@pytest.mark.each_value
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "epsilon", "gradient"])
@pytest.mark.parametrize("eager", [True, False])
def test_attention_whose_queries_may_see_nothing(eager, composite):
    explainer, x = attending(eager, composite), sequences()
    clear = torch.zeros(2, 4, 4, dtype=torch.float64)
    replay = replay_of(explainer, (x, clear), 2)
    some, none = clear.clone(), clear.clone()
    some[1, :, 2:] = NOTHING
    none[0, 1] = none[1, :, :] = NOTHING  # Rows that are masked everywhere attend to all keys alike.
    for seed, mask in enumerate((clear, some, none)):
        given = (sequences(seed), mask)
        given[0][0, 0] = 0.0  # Activations of exactly 0 have the limit of act(u) / u.
        output, relevance = replay(given, [2, 0])
        torch.testing.assert_close(output, explainer.model(*given))
        assert relative_error(relevance[0], explainer(given, [2, 0])[0]) < 1e-12


def test_a_row_that_a_huge_number_masks_everywhere_is_uniform():
    # Recorded without a mask: each value then gets a quarter of each query's relevance.
    explainer, x = attending(False, "cp_lrp"), sequences()
    replay = replay_of(explainer, (x, torch.zeros(2, 4, 4, dtype=torch.float64)), 1)
    masked = replay((x, torch.full((2, 4, 4), NOTHING, dtype=torch.float64)), 1)[1][0]
    even = torch.zeros(2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        explainer.model.wide.weight[:12] = 0  # Queries and keys: all scores are 0.
        explainer.model.wide.bias[:12] = 0
    assert relative_error(masked, explainer((x, even), 1)[0]) < 1e-12


@pytest.mark.parametrize("composite", ["zplus", "epsilon_alpha2_beta1"])
def test_an_input_that_was_positive_when_it_was_recorded(composite):
    explainer = Explainer(make("convnet"), composite, backend="torch")
    x = samples("convnet")
    replay = replay_of(explainer, x.abs(), 1)
    assert relative_error(replay(x - x.mean(), 1)[1], explainer(x - x.mean(), 1)) < 1e-12


def test_lengths_of_packed_sequences_are_refused():
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.layer(packed)[1][0][-1])

    explainer = Explainer(Packs().double().eval(), "epsilon", backend="torch")
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        replay_of(explainer, (torch.randn(2, 5, 3).double(), torch.tensor([5, 3])), 1)


def test_a_tape_refuses_kernels_that_it_does_not_see():
    explainer, x = Explainer(make("convnet"), "epsilon_plus", backend="cpu"), samples("convnet")
    replay = replay_of(explainer, x, 1)
    with pytest.raises(RuntimeError, match=r"the tape gives other numbers than what it recorded.*backend='torch'"):
        replay(x, 0)


def test_what_a_replay_reads_lives_as_long_as_it():
    """A CUDA graph holds addresses: what the explainer forgets meanwhile must not be among them."""
    explainer, mask = attending(False), torch.zeros(2, 4, 4, dtype=torch.float64)
    tape = Tape()
    replay = Replay(explainer._plans, (sequences(), mask), 2, recording=tape)
    read = read_from_outside(tape)
    tape.calls.clear()
    for batch in range(1, 5):
        explainer((sequences()[:1].expand(batch, 4, 6), mask[:1].expand(batch, 4, 4)), [0] * batch)
    explainer.refresh()
    gc.collect()
    assert len(read) > 8
    assert not [name for name, storage in read if storage.expired()]
    replay.close()


def read_from_outside(tape: Tape) -> list[tuple[str, Any]]:
    """The memory that recorded calls read and none of them made."""
    made, found = set(), {}
    for func, args, kwargs, result in tape.calls:
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in made:
                found[t.untyped_storage()._cdata] = (str(func), StorageWeakRef(t.untyped_storage()))
        made |= {t.untyped_storage()._cdata for t in tree_leaves(result) if isinstance(t, Tensor)}
    return list(found.values())
