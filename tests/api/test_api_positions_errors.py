"""Targets at positions of an output that do not fit: each error says what was expected."""

from __future__ import annotations

import pytest
import torch

import fastlrp
from tests.api.at_positions import X, explained_text, segment
from tests.api.models import samples, shared


@pytest.mark.parametrize(
    ("targets", "at", "error", "message"),
    [
        (0, 6, IndexError, r"position 6 is out of range: the output \(3, 6, 9\) has 6 positions, -6 to 5"),
        (0, [1, -7], IndexError, "position -7 is out of range"),
        (0, fastlrp.each([0, 1, 9]), IndexError, "position 9 is out of range"),
        (9, 2, IndexError, r"target 9 is out of range: the output \(3, 6, 9\) has 9 classes, 0 to 8"),
        (-1, 2, IndexError, "target -1 is out of range"),
        ({3: 1.0, 9: -1.0}, 2, IndexError, "target 9 is out of range"),
        ("top10", 2, IndexError, "'top10' asks for 10 classes, the output has 9"),
        ("top1", None, ValueError, r"'top1' needs an output \(B, C\), got \(3, 6, 9\); .*name some, at=-1"),
        (0, [], ValueError, "at= is empty: name at least one position"),
        ([], 2, ValueError, "targets is empty: name at least one class"),
        ({}, 2, ValueError, "empty contrast {}"),
        ([0, {}], 2, ValueError, "empty contrast {}"),
        ({3: "much"}, 2, TypeError, "the weight of 3 in a contrast must be a number, got 'much'"),
        ({3: float("nan")}, 2, ValueError, "the weight of 3 in a contrast must be finite, got nan"),
        ({"cat": 1.0}, 2, TypeError, "targets names the class 'cat', and the explainer knows no names"),
        ({True: 1.0}, 2, TypeError, "targets given as classes must be integers, got True"),
        (0, 1.5, TypeError, "at= names positions by integers, got torch.float32"),
        (0, True, TypeError, "at= names positions by integers, got torch.bool"),
        (0, {1}, TypeError, "at= must be a position, a list of positions"),
        (0, "first", ValueError, "at='first' is not known: use a position, a list of them, 'all' or 'pairs'"),
        (0, (3, 5), ValueError, r"at=\(3, 5\): as a tuple it is one place .* needs 1 number; .* list, at=\[3, 5\]"),
        (0, torch.zeros(2, 2, dtype=torch.long), ValueError, r"at= per sample must be \(B, P\) = \(3, P\)"),
        (0, torch.ones(6, dtype=torch.bool), ValueError, "at= is a bool mask, which stands for an area"),
        (0, fastlrp.each([0, 1]), ValueError, r"at= per sample must be \(B, P\) = \(3, P\), got \(2, 1\)"),
        (fastlrp.each([0, 1]), 0, ValueError, r"targets=fastlrp.each\(…\) has 2 entries for 3 samples"),
        (fastlrp.each([{0: 1.0}]), 0, ValueError, r"targets=fastlrp.each\(…\) has 1 entries for 3 samples"),
        (torch.ones(1, 6, 9), 2, ValueError, "initial relevance of all positions: leave at= out"),
        (0, "pairs", TypeError, r"tuples of 2 integers, .*, got 0"),
        ([3, 7], "pairs", ValueError, r"tuples of 2 integers, .*, got 3"),
        ([(3, 7, 1)], "pairs", ValueError, r"tuples of 2 integers, .*, got \(3, 7, 1\)"),
        ([(3, 9)], "pairs", IndexError, r"target \(3, 9\) is out of range: axis 2 of the output .* has 9 entries"),
        ([(6, 0)], "pairs", IndexError, r"target \(6, 0\) is out of range: axis 1 of the output .* has 6 entries"),
        ([(0.5, 0)], "pairs", TypeError, r"target \(0.5, 0\) must hold integers, got float"),
        ([], "pairs", ValueError, "targets is empty"),
        ("all", "pairs", TypeError, r"targets 'all' can't be pairs"),
        (torch.zeros(4, 3, dtype=torch.long), "pairs", ValueError, r"must be \(K, 2\) or \(3, K, 2\), got \(4, 3\)"),
        (fastlrp.next_tokens([[0] * 5] * 3), None, ValueError, r"has 6 positions for 3 texts, the ids are \(3, 5\)"),
        (fastlrp.next_tokens([[0] * 6] * 3), -1, IndexError, "position 5 is the text's last: no token follows"),
        (fastlrp.next_tokens([[10] * 6] * 3), 0, IndexError, "target 10 is out of range"),
        (fastlrp.next_tokens([[0] * 6] * 3), "pairs", ValueError, "next tokens have positions of their own"),
    ],
)  # fmt: skip
def test_what_does_not_fit(targets, at, error, message):
    with pytest.raises(error, match=message):
        explained_text()(X, targets, at=at)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastlrp.each(3), TypeError, r"each\(\) takes one entry for each sample, \(B,\), got int"),
        (lambda: fastlrp.each("ab"), TypeError, r"each\(\) takes one entry for each sample"),
        (lambda: fastlrp.each([]), ValueError, r"each\(\) is empty"),
        (lambda: fastlrp.each([0.5]), TypeError, r"each\(\) takes integers, got torch.float32"),
        (lambda: fastlrp.each([[1], [1, 2]]), TypeError, r"each\(\) takes one integer for each sample"),
        (lambda: fastlrp.each(torch.zeros(1, 1, 1).long()), ValueError, r"each\(\) takes \(B,\) or \(B, K\)"),
        (lambda: fastlrp.next_tokens([1, 2]), ValueError, r"takes token ids \(B, S\), got \(2,\)"),
        (lambda: fastlrp.next_tokens([[1.0]]), TypeError, "which are integers, got torch.float32"),
        (lambda: fastlrp.next_tokens("text"), TypeError, r"next_tokens\(\) takes token ids \(B, S\)"),
    ],
)
def test_bad_spellings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_positions_of_an_output_without_any():
    for at in (0, "all", [1], (0,), "pairs"):
        with pytest.raises(ValueError, match=r"at=.* \(2, 5\).*: leave at= out"):
            shared("convnet", "lrp0")(samples("convnet"), 0, at=at)
    with pytest.raises(ValueError, match=r"a place is a tuple of 2 numbers, one for each further axis, or a bool mask"):
        segment(0, at=1)
    with pytest.raises(IndexError, match=r"at=\(1, 3\) is out of range: axis 3 of the output \(2, 3, 3, 3\)"):
        segment(0, at=(1, 3))
    with pytest.raises(ValueError, match=r"needs 2 numbers$"):
        segment(0, at=(1,))
    with pytest.raises(ValueError, match=r"a mask must be \(3, 3\) or \(2, 3, 3\), got \(2, 2\)"):
        segment(0, at=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a mask without a cell"):
        segment(0, at=torch.zeros(3, 3, dtype=torch.bool))
