"""What is stored is within the stated bound of what was given, and comes back exactly."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from fastlrp.report import Maps
from fastlrp.report.codec import MEDIAN, PLAIN, coarse, deflate, inflate, pack, quantise, unpack
from fastlrp.report.png import encode
from tests.report.pages import noise, smooth


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (7, 1), (13, 8)])
def test_shown_values_are_within_the_bound(bits, factor, shape):
    R = noise(*shape, seed=bits).astype(np.float64) * 1e-9
    packed = pack(R, bits, factor)
    cells = coarse(R, factor)
    shown = unpack(packed.text, packed.kind, packed.scale, cells.shape)
    assert np.abs(shown - cells).max() <= packed.error <= np.abs(cells).max() / (2 ** (bits - 1) - 1) * 0.5000001
    assert np.abs(shown).max() == pytest.approx(np.abs(cells).max(), rel=1e-12)  # The largest is exact.
    assert packed.total == R.sum() == pytest.approx(cells.sum(), rel=1e-9)


def test_coarse_cells_are_sums_and_the_last_ones_may_be_smaller():
    R = np.arange(15.0).reshape(3, 5)
    assert coarse(R, 2).tolist() == [[0 + 1 + 5 + 6, 2 + 3 + 7 + 8, 4 + 9], [10 + 11, 12 + 13, 14]]
    assert coarse(np.arange(5.0)[None], 2).tolist() == [[1, 5, 4]]
    assert coarse(R, 1) is R


def test_smooth_maps_are_predicted_and_noise_is_not():
    hills, rough = smooth(3, 64, 64)[2], noise(64, 64)
    q = quantise(hills.astype(np.float64), 8)[0]
    assert deflate(q)[0] == MEDIAN
    assert len(deflate(q)[1]) < 0.7 * len(zlib.compress(q.tobytes(), 9))
    assert deflate(quantise(rough.astype(np.float64), 8)[0])[0] == PLAIN


def test_prediction_comes_back_where_differences_do_not_fit_into_a_byte():
    q = np.where(np.indices((9, 11)).sum(0) % 2, 127, -127).astype(np.int8)
    q[4:, :5] = np.random.default_rng(0).integers(-127, 128, (5, 5))
    predicted = zlib.compress((q - _median_by_hand(q)).astype(np.uint8).tobytes())
    assert np.array_equal(inflate(MEDIAN, predicted, q.shape), q)
    kind, data = deflate(q)
    assert np.array_equal(inflate(kind, data, q.shape), q)


def _median_by_hand(q: np.ndarray) -> np.ndarray:
    out = np.zeros(q.shape, int)
    for y in range(q.shape[0]):
        for x in range(q.shape[1]):
            left, above = int(q[y, x - 1]) if x else 0, int(q[y - 1, x]) if y else 0
            corner = int(q[y - 1, x - 1]) if x and y else 0
            out[y, x] = sorted((left, above, left + above - corner))[1]
    return out


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-45, 1e300, -1e300])
def test_extreme_maps(value):
    R = np.array([[0.0, value]])
    packed = pack(R, 8, 1)
    shown = unpack(packed.text, packed.kind, packed.scale, (1, 2))
    assert np.abs(shown - R).max() <= max(packed.error, 1e-320)
    assert shown[0, 0] == 0


def test_a_map_that_is_off_already_has_a_wider_bound():
    R = noise(8, 8).astype(np.float64)
    assert pack(R, 8, 2, error=0.25).error == pytest.approx(pack(R, 8, 2).error + 4 * 0.25, rel=1e-6)


def test_maps_keep_16_bits_of_each():
    given = noise(5, 6, 7) * np.array([1e-12, 0, 1, 1e6, 1e30], np.float32)[:, None, None]
    maps = Maps(given.shape)
    maps.put(0, given[:2])
    maps.put(2, given[2:])
    bound = np.abs(given).max((1, 2)) / 65534
    assert np.allclose(maps.error, bound, rtol=1e-6)
    for k in range(5):
        assert np.abs(maps.exact(k) - given[k]).max() <= bound[k] * (1 + 1e-9)
    assert np.allclose(maps.total, given.astype(np.float64).sum((1, 2)))
    whole = np.asarray(maps)
    assert (whole.dtype, whole.shape, len(maps)) == (np.float32, (5, 6, 7), 5)
    assert np.array_equal(maps[3], whole[3])
    assert np.array_equal(maps[1:4, 2:, 3], whole[1:4, 2:, 3])
    assert np.array_equal(maps[-1, 0], whole[-1, 0])
    assert np.array_equal(maps[[0, 4]], whole[[0, 4]])


def test_maps_refuse_what_does_not_fit():
    maps = Maps((2, 3, 3))
    for first, shape in ((0, (1, 3, 2)), (1, (2, 3, 3)), (-1, (1, 3, 3))):
        with pytest.raises(ValueError, match="does not fit"):
            maps.put(first, np.zeros(shape))
    with pytest.raises(ValueError, match="NaN"):
        maps.put(0, np.full((1, 3, 3), np.nan))


def test_png_is_read_by_others(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(encode(image))
    assert np.array_equal(np.asarray(image_module.open(tmp_path / "x.png")), image)


def test_text_is_base64_alone():
    assert base64.b64decode(pack(noise(9, 9).astype(float), 8, 1).text, validate=True)
