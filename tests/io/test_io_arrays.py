"""Arrays in ``.npy``, ``.npz``, ``.txt`` and ``.mat``: round trips, other programs' files, damaged ones."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch

from fastlrp.io import FormatError, read_array, write_array

MATRIX = np.array([[1.5, -0.0, 1 / 3], [1e-300, -7.0, 2.0**60]])


@pytest.mark.parametrize("form", ["npy", "npz", "mat"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "b1", ">f8"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (2, 3, 4), (0, 3)])
def test_round_trip_of_binary_formats(form, dtype, shape, tmp_path):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    for layout in (array, np.asfortranarray(array), array[..., ::-1]):
        write_array(layout, tmp_path / f"a.{form}")
        back = read_array(tmp_path / f"a.{form}")
        assert back.dtype == np.dtype(dtype).newbyteorder("=")
        assert back.shape == shape
        assert np.array_equal(back, layout)
    assert read_array(tmp_path / f"a.{form}").flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_round_trip_of_text_is_exact(dtype, tmp_path):
    array = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
    array[0, :3] = [np.inf, -np.inf, np.nan]
    write_array(array, tmp_path / "a.txt")
    back = read_array(tmp_path / "a.txt")
    assert (back.dtype, back.shape) == (np.float64, array.shape)
    assert np.array_equal(back.astype(dtype), array, equal_nan=True)


def test_text_of_numpy_and_text_for_numpy(tmp_path):
    np.savetxt(tmp_path / "a.txt", MATRIX, header="a matrix\nof numbers")
    assert np.array_equal(read_array(tmp_path / "a.txt"), MATRIX)
    write_array(MATRIX, tmp_path / "b.txt")
    assert np.array_equal(np.loadtxt(tmp_path / "b.txt"), MATRIX)
    assert (tmp_path / "b.txt").read_text() == "1.5 -0.0 0.3333333333333333\n1e-300 -7.0 1.152921504606847e+18\n"


def test_a_vector_in_text_is_a_column_and_integers_stay_integers(tmp_path):
    write_array(torch.tensor([3, 1, 2]), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "3\n1\n2\n"
    assert read_array(tmp_path / "a.txt").tolist() == [[3], [1], [2]]
    write_array([[True, False]], tmp_path / "a.txt")
    assert read_array(tmp_path / "a.txt").tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="text is read as float64, which does not hold integers beyond 2"):
        write_array(np.array([2**53 + 1]), tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"text takes a matrix.* got the shape \(1, 1, 1\)"):
        write_array(np.ones((1, 1, 1)), tmp_path / "a.txt")
    assert read_array(tmp_path / "a.txt").tolist() == [[1, 0]]


def test_tensors_and_explicit_formats(tmp_path):
    tensor = torch.rand(2, 3, requires_grad=True)
    write_array(tensor, tmp_path / "relevance", format="npy")
    assert np.array_equal(read_array(tmp_path / "relevance", format="npy"), tensor.detach().numpy())
    with pytest.raises(ValueError, match="the suffix of 'relevance' is none of npy, npz, txt, mat"):
        read_array(tmp_path / "relevance")
    with pytest.raises(ValueError, match="format='hdf5' is none of"):
        write_array(tensor, tmp_path / "a.npy", format="hdf5")
    with pytest.raises(TypeError, match=r"NumPy has no torch.bfloat16: convert with .float\(\)"):
        write_array(tensor.bfloat16(), tmp_path / "a.npy")
    with pytest.raises(TypeError, match="array has the dtype object, expected real numbers"):
        write_array(np.array([None]), tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"key='x', but a \.npy file holds one array without a name"):
        write_array(tensor, tmp_path / "a.npy", key="x")


def test_npz_with_several_arrays_needs_a_key(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=MATRIX, labels=np.arange(3))
    with pytest.raises(FormatError, match="the file holds 2 arrays, name one with key=: 'images', 'labels'"):
        read_array(path)
    with pytest.raises(FormatError, match="there is no array 'image': the file holds 'images', 'labels'"):
        read_array(path, "image")
    assert np.array_equal(read_array(path, "images"), MATRIX)
    write_array(MATRIX, path, key="file")
    with np.load(path, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["file"], MATRIX)
    write_array(MATRIX, path)
    assert np.array_equal(read_array(path, "data"), MATRIX)
    with pytest.raises(ValueError, match="key must be a name without slashes"):
        write_array(MATRIX, path, key="../a")


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + content


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s}\n"
DAMAGED = {
    "no npy": (b"hello", "this is no .npy file"),
    "a pickle": (b"\x80\x04K\x01.", "this is no .npy file"),
    "objects": (npy(HEADER % ("|O", "(1,)"), b"\x80\x04N."), "holds pickled Python objects, which are not read"),
    "structured": (
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}\n", bytes(8)),
        "expected numbers",
    ),
    "text": (npy(HEADER % ("<U2", "(1,)"), bytes(8)), "has the dtype <U2, expected numbers"),
    "too short": (
        npy(HEADER % ("<f8", "(2,)"), bytes(8)),
        r"shape \(2,\) and dtype float64 make 16 bytes, the file has 8",
    ),
    "too long": (npy(HEADER % ("<f8", "(2,)"), bytes(24)), "make 16 bytes, the file has 24"),
    "huge": (npy(HEADER % ("<f8", "(10**9, 10**9)"), bytes(8)), "this is no .npy file"),
    "enormous": (npy(HEADER % ("<f8", "(1000000000, 1000000000)"), bytes(8)), "make 8000000000000000000 bytes"),
    "negative": (npy(HEADER % ("<f8", "(-1, -8)"), bytes(64)), "it is damaged"),
    "code in the header": (npy("__import__('os').system('true')\n"), "this is no .npy file"),
    "nested without end": (npy("(" * 9000), "this is no .npy file"),
    "version 3": (npy(HEADER % ("<f8", "(1,)"), bytes(8), b"\x03\x00"), "version"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_npy_and_npz(case, tmp_path):
    data, message = DAMAGED[case]
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(FormatError, match=f"array 'x': .*{message}"):
        read_array(tmp_path / "a.npz")


def test_archives_that_are_no_archives_or_unpack_without_end(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(FormatError, match=r"this is no \.npz file"):
        read_array(path)
    np.savez(path)
    with pytest.raises(FormatError, match="the file holds no array"):
        read_array(path)
    np.savez_compressed(path, x=np.zeros(10**6))
    assert path.stat().st_size < 10**4
    with pytest.raises(FormatError, match=r"array 'x' unpacks to 8000128 bytes, more than max_bytes=100000"):
        read_array(path, max_bytes=10**5)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("1 2\n3\n", 2, "found 1 numbers, expected 2: row 2, as long as the first"),
        ("1 2\n\n3 x\n", 3, "number 2 of row 2, as long as the first is 'x': expected a number"),
        ("# nothing\n\n", 2, "the file holds no number"),
        ("1,2\n", 1, "is '1,2': expected a number"),
    ],
)
def test_damaged_text(text, line, message, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_array(tmp_path / "a.txt")
    assert caught.value.line == line


# Matlab


def test_matlab_files_against_scipy(tmp_path):
    scipy_io = pytest.importorskip("scipy.io", reason="SciPy is what our reader of .mat files is compared with")
    path = tmp_path / "a.mat"
    for array in (MATRIX, MATRIX.astype("f4"), np.arange(6).reshape(1, 2, 3), MATRIX * 1j, np.arange(5, dtype="u1")):
        for compressed in (False, True):
            scipy_io.savemat(path, {"data": array}, do_compression=compressed, oned_as="row")
            assert np.array_equal(read_array(path), np.atleast_2d(array))
        if array.dtype.kind != "c":
            write_array(array, path, key="R")
            assert np.array_equal(scipy_io.loadmat(path)["R"], np.atleast_2d(array))
    write_array(np.array([[True, False]]), path)
    assert scipy_io.whosmat(path) == [("data", (1, 2), "logical")]
    others = {"a": MATRIX, "text": "word", "cell": np.array([[1, "a"]], object), "struct": {"x": 1}}
    scipy_io.savemat(path, others)
    assert np.array_equal(read_array(path, "a"), MATRIX)
    with pytest.raises(FormatError, match="the file holds 4 arrays, name one with key=: 'a', 'text', 'cell', 'struct'"):
        read_array(path)
    for name, kind in (("text", "char"), ("cell", "cell"), ("struct", "struct")):
        with pytest.raises(FormatError, match=f"variable '{name}' is a {kind}, expected an array of numbers"):
            read_array(path, name)


def matlab(order: str, *elements: bytes, version: int = 0x0100, mark: bytes = b"") -> bytes:
    mark = mark or {"<": b"IM", ">": b"MI"}[order]
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", version) + mark + b"".join(elements)


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(
    order: str, shape: tuple[int, ...], numbers: bytes, kind: int = 6, stored: int = 9, name: bytes = b"x"
) -> bytes:
    short = struct.pack(f"{order}I", len(name) << 16 | 1) + name.ljust(4, b"\0")
    parts = (
        element(order, 6, struct.pack(f"{order}II", kind, 0)),
        element(order, 5, struct.pack(f"{order}{len(shape)}i", *shape)),
        short,
        element(order, stored, numbers),
    )
    return element(order, 14, b"".join(parts))


@pytest.mark.parametrize("order", ["<", ">"])
def test_matlab_files_in_both_byte_orders_and_with_small_storage(order, tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(matlab(order, matrix(order, (2, 2), np.array([1, 2, 3, 4.5], f"{order}f8").tobytes())))
    assert read_array(path).tolist() == [[1, 3], [2, 4.5]]
    # Matlab stores a double that is a small integer in one byte.
    path.write_bytes(matlab(order, matrix(order, (2, 2), bytes([1, 2, 3, 4]), stored=2)))
    assert (read_array(path).dtype, read_array(path).tolist()) == (np.float64, [[1, 3], [2, 4]])


def packed(data: bytes) -> bytes:
    return element("<", 15, zlib.compress(data))[: 8 + len(zlib.compress(data))]


NUMBERS = np.arange(4.0).tobytes()
WHOLE = matrix("<", (2, 2), NUMBERS)
BAD_MATLAB = {
    "no header": (b"hello", "it has no byte-order mark in its header"),
    "version 7.3": (
        b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n",
        r"version 7.3 \(HDF5\), save it with -v7",
    ),
    "another version": (matlab("<", version=0x0200), "the version in its header is not 5"),
    "nothing in it": (matlab("<"), "the file holds no array"),
    "something else": (matlab("<", element("<", 5, bytes(8))), "an element of type 5 where a matrix is expected"),
    "cut short": (matlab("<", WHOLE[:-8]), "an element of .* bytes ends behind the data"),
    "compressed and cut short": (matlab("<", packed(WHOLE)[:-30], bytes(40)), "damaged"),
    "too few numbers": (
        matlab("<", matrix("<", (2, 3), NUMBERS)),
        r"sizes \(2, 3\), but 32 bytes of 8 for each number",
    ),
    "negative size": (matlab("<", matrix("<", (-2, -2), NUMBERS)), r"a matrix has the sizes \(-2, -2\)"),
    "huge": (matlab("<", matrix("<", (2**30, 2**30), NUMBERS)), "has 9223372036854775808 bytes, more than max_bytes"),
    "many axes": (matlab("<", matrix("<", (1,) * 33, NUMBERS)), "a matrix has 33 axes"),
    "unknown numbers": (matlab("<", matrix("<", (2, 2), NUMBERS, stored=99)), "has numbers of type 99"),
    "a sparse matrix": (matlab("<", matrix("<", (2, 2), NUMBERS, kind=5)), "is a sparse, expected an array of numbers"),
}


@pytest.mark.parametrize("case", BAD_MATLAB)
def test_damaged_matlab_files(case, tmp_path):
    data, message = BAD_MATLAB[case]
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_array(tmp_path / "a.mat")


def test_a_matlab_file_that_unpacks_without_end(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(matlab("<", packed(matrix("<", (2, 2), NUMBERS + bytes(10**7)))))
    assert path.stat().st_size < 20_000
    with pytest.raises(FormatError, match="ends behind the data"):  # It is unpacked as far as its sizes go.
        read_array(path)
    path.write_bytes(matlab("<", packed(matrix("<", (10**3, 10**3), bytes(8 * 10**6)))))
    with pytest.raises(FormatError, match="has 8000000 bytes, more than max_bytes=100000"):
        read_array(path, max_bytes=10**5)
    assert read_array(path).shape == (1000, 1000)


def test_every_cut_of_a_matlab_file_is_refused(tmp_path):
    stream = io.BytesIO()
    path = tmp_path / "a.mat"
    write_array(MATRIX, path)
    stream.write(path.read_bytes())
    for end in range(1, len(stream.getvalue())):
        path.write_bytes(stream.getvalue()[:end])
        with pytest.raises(FormatError):
            read_array(path)


@pytest.mark.parametrize(
    ("array", "key", "error", "message"),
    [
        (MATRIX, "1a", ValueError, "key must be a name of Matlab: a letter, then"),
        (np.ones(3, np.float16), None, TypeError, "Matlab has no float16: convert to float32 or float64"),
    ],
)
def test_what_matlab_does_not_have(array, key, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write_array(array, tmp_path / "a.mat", key=key)
    assert not list(tmp_path.iterdir())
