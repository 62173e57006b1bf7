"""Text models that are malformed or truncated: each gives an error with its line, what was found and expected."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from fastlrp.io import FormatError, read_model
from tests.io import toolbox

CASES = {
    "empty": ("", None, "the file is empty"),
    "only an empty line": ("\n", 1, "found no layer, expected one of Linear, Convolution"),
    "unknown layer": ("Rect\nBatchNorm 3\n", 2, "unknown layer 'BatchNorm', expected one of Linear"),
    "layer in small letters": ("linear 2 3\n", 1, "unknown layer 'linear'"),
    "no sizes": ("Linear\n", 1, "found 0 values, expected 2: m n"),
    "too few sizes": ("Convolution 3 3 1 2\n", 1, "found 4 values, expected 6: h w d n s0 s1"),
    "size is no integer": ("Linear 2 3.0\n", 1, "n is '3.0', expected an integer"),
    "size of zero": ("Linear 0 3\n\n\n", 1, "m is 0, expected at least 1"),
    "negative size": ("Linear 2 -3\n", 1, "n is -3, expected at least 1"),
    "stride of zero": ("SumPool 2 2 0 2\n", 1, "s0 is 0, expected at least 1"),
    "words behind a plain layer": ("Rect 3\n", 1, "found 'Rect 3', expected Rect alone in its line"),
    "too few weights": (
        "Linear 2 3\n1 2 3 4 5\n1 2 3\n",
        2,
        r"found 5 numbers, expected 6 \(W of Linear 2 3 in one line\) or 3 \(the first of 2 lines\)",
    ),
    "too many biases": ("Linear 1 2\n1 2\n1 2 3\n", 3, "found 3 numbers, expected 2: B of Linear 1 2"),
    "row cut short": ("Linear 2 3\n1 2 3\n4 5\n1 2 3\n", 3, "found 2 numbers, expected 3: row 2 of 2 of W"),
    "rows missing": ("Linear 3 2\n1 2\n3 4\n", 3, "the file ends here, expected row 3 of 3 of W of Linear 3 2"),
    "bias missing": ("Linear 1 2\n1 2\n", 2, "the file ends here, expected B of Linear 1 2"),
    "empty line in the middle": ("Linear 1 2\n\n1 2\n", 2, "found an empty line, expected W of Linear 1 2"),
    "word among the weights": ("Linear 1 2\n1 x\n1 2\n", 2, "number 2 of W of Linear 1 2 is 'x': expected a number"),
    "number with an underscore": ("Linear 1 2\n1 1_0\n1 2\n", 2, "is '1_0': expected a number"),
    "not a number": ("Linear 1 2\n1 2\nnan 2\n", 3, "number 1 of B of Linear 1 2 is 'nan': expected a finite number"),
    "infinite": ("Linear 1 2\n1 -inf\n1 2\n", 2, "number 2 of W of Linear 1 2 is '-inf': expected a finite number"),
    "beyond float64": ("Linear 1 2\n1e400 0\n1 2\n", 2, "is '1e400': expected a finite number"),
    "filter cut short": ("Convolution 2 2 1 1 1 1\n1 2 3\n0\n", 2, "found 3 numbers, expected 4: W of Convolution"),
    "features that do not fit": (
        "Linear 1 2\n1 2\n0 0\nTanh\nLinear 3 1\n1 2 3\n0\n",
        5,
        "Linear 3 1 takes 3 features, but 2 come from the layers before it",
    ),
    "channels that do not fit": (
        "Convolution 1 1 1 2 1 1\n1 2\n0 0\nSumPool 2 2 2 2\nConvolution 1 1 3 1 1 1\n1 2 3\n0\n",
        5,
        "takes 3 channels, but 2 come from the layers before it",
    ),
    "no multiple of the channels": (
        "Convolution 1 1 1 2 1 1\n1 2\n0 0\nFlatten\nLinear 3 1\n1 2 3\n0\n",
        5,
        "Linear 3 1 takes 3 features, but the layers before it give a multiple of 2",
    ),
    "flatten missing": (
        "Convolution 1 1 1 2 1 1\n1 2\n0 0\nLinear 2 1\n1 2\n0\n",
        4,
        "Linear 2 1 stands behind maps: a Flatten is missing before it",
    ),
    "maps behind features": ("Flatten\nSumPool 2 2 2 2\n", 2, "SumPool 2 2 2 2 takes maps, but features come"),
    "softmax of maps": ("SumPool 2 2 2 2\nSoftMax\n", 2, "SoftMax stands behind maps"),
    "something behind the end": ("Rect\n\nRect\n", 3, "found 'Rect' after the empty line that ends a model"),
    "huge sizes": ("Linear 999999999 999999999\n1 2 3\n1\n", 2, "found 3 numbers, expected 999999998000000001"),
    "huge number of rows": ("Linear 999999999 3\n1 2 3\n1 2 3\n", 3, "expected row 3 of 999999999"),
    "sizes beyond all": (f"Linear {'9' * 30} 1\n1\n1\n", 1, "m is '9{30}', expected an integer"),
    "huge filters": ("Convolution 99999 99999 99999 99999 1 1\n1\n1\n", 2, "found 1 numbers, expected 9999"),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed_text_is_refused_with_line_and_reason(case, tmp_path):
    text, line, message = CASES[case]
    path = tmp_path / "net.txt"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_model(path)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{path}, line {line}: " if line else f"{path}: ")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.line, again.reason) == (str(caught.value), line, caught.value.reason)


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 100, b"Linear 2 3\n\xff\xfe\n", b"PK\x03\x04\x80\x00", "Linéar".encode()]
)
def test_binary_garbage_is_refused_with_its_line(garbage, tmp_path):
    path = tmp_path / "net.txt"
    path.write_bytes(garbage)
    with pytest.raises(FormatError, match=r"line \d+: byte 0x.. is not text: expected a plain ASCII file"):
        read_model(path)


def test_a_text_cut_anywhere_is_refused_or_ends_with_a_whole_layer(tmp_path):
    path = tmp_path / "net.txt"
    whole = {3: 1, 4: 2, 7: 3, 8: 4}  # Lines that end a layer, and how many layers that makes.
    refused = 0
    for end in range(1, len(toolbox.TEXT)):
        path.write_text(toolbox.TEXT[:end])
        lines = toolbox.TEXT[:end].count("\n") + (toolbox.TEXT[end - 1] != "\n")
        try:
            net = read_model(path)
        except FormatError:
            refused += 1
        else:
            assert len(net) == whole[lines]
    assert refused > 0.7 * len(toolbox.TEXT)


def test_weights_too_large_for_the_dtype_are_refused(tmp_path):
    path = tmp_path / "net.txt"
    path.write_text("Linear 1 2\n1 1e39\n0 0\n")
    with pytest.raises(
        FormatError, match=r"layer 0 has the weight 1e\+39, too large for torch.float32: read with a wider"
    ):
        read_model(path)
    assert read_model(path, torch.float64)[0].weight[1].item() == 1e39


def test_size_limit_and_wrong_dtype(tmp_path):
    path = tmp_path / "net.txt"
    path.write_text(toolbox.TEXT)
    with pytest.raises(FormatError, match="bytes, more than max_bytes=20: raise it if that is right"):
        read_model(path, max_bytes=20)
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype, got torch\.int32"):
        read_model(path, torch.int32)
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "other.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_what_is_no_regular_file_is_refused():
    with pytest.raises(FormatError, match="expected a regular file, found a device"):
        read_model("/dev/zero")
