"""Files that are cut off anywhere, declare more than they have, unpack without end, or are no files."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlrp import io
from fastlrp.files import unpacked_limit
from fastlrp.io import FormatError, read_array, read_model, read_raw_heatmap, read_top_scores
from tests.io import toolbox

MATRIX = np.array([[0.5, -12.25, 3e-7], [1.0, 2.125, 10.5]])


def model_text(path: Path) -> None:
    path.write_text(toolbox.TEXT)


def heatmap(path: Path) -> None:
    io.write_raw_heatmap(torch.tensor(MATRIX)[None], path)


def scores(path: Path) -> None:
    io.write_top_scores(torch.tensor([0.25, 13.75, -1.5]), path)


def matrix(path: Path) -> None:
    io.write_array(MATRIX, path)


def npz(path: Path) -> None:
    np.savez_compressed(path, a=MATRIX)


FORMS = {
    "model.txt": (model_text, read_model),
    "a_rawhm.txt": (heatmap, read_raw_heatmap),
    "a_toptenscores.txt": (scores, read_top_scores),
    "a.txt": (matrix, read_array),
    "a.npy": (matrix, read_array),
    "a.npz": (npz, read_array),
    "a.mat": (matrix, read_array),
}
LINES = {"model.txt": {3, 4, 7, 8}, "a_toptenscores.txt": {1, 2}, "a.txt": {1}}
"""Behind which lines a cut leaves a whole, shorter file: these formats have no mark of their end."""


@pytest.mark.parametrize("name", FORMS)
def test_a_file_cut_anywhere_is_refused_unless_what_is_left_is_a_whole_file(name, tmp_path):
    make, read = FORMS[name]
    path = tmp_path / name
    make(path)
    whole = path.read_bytes()
    read(path)
    accepted = []
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            read(path)
        except FormatError:
            continue
        accepted.append(end)
    lines = np.flatnonzero(np.frombuffer(whole, np.uint8) == ord("\n")) + 1
    assert accepted == [int(end) for k, end in enumerate(lines, 1) if k in LINES.get(name, ()) and end < len(whole)]


@pytest.mark.parametrize("name", ["model.txt", "a_rawhm.txt", "a_toptenscores.txt", "a.txt"])
def test_a_last_line_without_its_newline_is_told(name, tmp_path):
    make, read = FORMS[name]
    path = tmp_path / name
    make(path)
    path.write_bytes(path.read_bytes().rstrip())
    with pytest.raises(FormatError, match="may be cut off; add one if it is whole") as caught:
        read(path)
    assert caught.value.line == path.read_bytes().count(b"\n") + 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", [*FORMS, "model.nn"])
def test_a_pipe_is_refused_and_nobody_waits_for_it(name, tmp_path):
    os.mkfifo(tmp_path / name)
    read = read_model if name == "model.nn" else FORMS[name][1]
    with pytest.raises(FormatError, match="expected a regular file, found a device, socket or pipe"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", FORMS)
def test_devices_and_folders_are_refused(name, tmp_path):
    read = FORMS[name][1]
    (tmp_path / f"zero.{name}").symlink_to("/dev/zero")
    with pytest.raises(FormatError, match="expected a regular file"):
        read(tmp_path / f"zero.{name}")
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="directory"):
        read(tmp_path / name)


def header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "shape",
    ["(0, 100000000000000000000000)", f"({', '.join(['1'] * 40)})", "(0, 9223372036854775807)", "(-1, 0)", "(1.5,)",
     "(True, 'a')", "'ab'", "(1, None)", f"(1{'0' * 5000},)", "()", "(-0,)"],
)  # fmt: skip
def test_shapes_that_no_array_can_have(shape, tmp_path):
    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(4))
    with pytest.raises(FormatError):
        read_array(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(header(shape))
    try:
        found = read_array(tmp_path / "a.npy")
    except FormatError:
        return
    assert found.size == 0


def test_every_changed_byte_of_a_header_gives_an_array_or_a_format_error(tmp_path):
    matrix(tmp_path / "a.npy")
    whole, generator = (tmp_path / "a.npy").read_bytes(), np.random.default_rng(0)
    for place in range(128):
        for byte in generator.integers(0, 256, 4).tolist():
            (tmp_path / "a.npy").write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                read_array(tmp_path / "a.npy")
            except FormatError:
                continue


def test_what_unpacks_to_thousands_of_times_its_size_needs_to_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("fastlrp.files.UNPACKED_BYTES", 10**5)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**5))
    with pytest.raises(FormatError, match=r"array 'x' unpacks to 800128 bytes, more than max_bytes=.*raise it"):
        read_array(tmp_path / "a.npz")
    assert read_array(tmp_path / "a.npz", max_bytes=10**6).shape == (10**5,)
    noise = np.random.default_rng(0).random(10**5)
    np.savez_compressed(tmp_path / "b.npz", x=noise)
    assert np.array_equal(read_array(tmp_path / "b.npz"), noise)
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "a.mat", {"x": np.zeros((100, 1000))}, do_compression=True)
    with pytest.raises(FormatError, match=r"has 800000 bytes, more than max_bytes=.*raise it"):
        read_array(tmp_path / "a.mat")
    assert read_array(tmp_path / "a.mat", max_bytes=10**6).shape == (100, 1000)


def test_the_limit_of_what_is_unpacked():
    assert unpacked_limit(3 * 10**6, None) == 3 * 10**8
    assert unpacked_limit(10, None) == 2**28
    assert unpacked_limit(10**9, None) == 2**32
    assert unpacked_limit(3 * 10**6, 3 * 10**9) == 3 * 10**9


def test_an_archive_whose_directory_lies_about_a_size(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header("(1000,)") + bytes(8000))
    data = path.read_bytes()
    size = struct.pack("<I", len(header("(1000,)")) + 8000)
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, struct.pack("<I", len(header("(1000,)")) + 80)))
    with pytest.raises(FormatError):
        read_array(path)
