"""Heatmaps: known relevance gives known colours, whatever it comes as."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fastlrp import viz

# Pure colours, which are easy to say.
heatmap = partial(viz.heatmap, cmap="bwr")

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def pixels(image):
    """``(H, W, 3)``; also checks what every picture must be."""
    assert image.mode == "RGB"
    return np.asarray(image)


def test_known_relevance_gives_known_colours():
    image = heatmap(torch.tensor([[2.0, 0.0, -2.0], [1.0, -1.0, 0.0]]))
    assert image.size == (3, 2)
    found = pixels(image)
    assert [tuple(p) for p in found[0].tolist()] == [RED, WHITE, BLUE]
    # Half way is between the places 63 and 64 of 127, and a place is two shades.
    assert abs(found[1, 0].astype(int) - (255, 127, 127)).max() <= 2
    assert abs(found[1, 1].astype(int) - (127, 127, 255)).max() <= 2
    assert tuple(found[1, 2].tolist()) == WHITE


def test_symmetric_scale_has_the_same_strength_on_both_sides():
    relevance = torch.linspace(-3, 3, 101).reshape(1, 101)
    found = pixels(heatmap(relevance))[0].astype(int)
    # Blue is the mirror image of red.
    np.testing.assert_array_equal(found, found[::-1, ::-1])
    # The same where only one sign is there: the other end of the scale is unused.
    half = pixels(heatmap(relevance[:, 50:]))[0]
    np.testing.assert_array_equal(half, found[50:])


def test_channels_are_summed():
    relevance = torch.tensor([[[1.0, 2.0]], [[-1.0, 2.0]], [[0.0, -8.0]]])  # sums 0, -4
    np.testing.assert_array_equal(pixels(heatmap(relevance)), [[WHITE, BLUE]])
    np.testing.assert_array_equal(pixels(heatmap(relevance.sum(0))), [[WHITE, BLUE]])


def test_absolute_starts_at_zero():
    relevance = torch.tensor([[0.0, -4.0, 4.0, 2.0]])
    grey = pixels(heatmap(relevance, normalize="absolute", cmap="gray"))[0, :, 0]
    np.testing.assert_array_equal(grey, [0, 255, 255, 128])
    # On a diverging map, zero stays neutral: its upper half is used.
    np.testing.assert_array_equal(pixels(heatmap(relevance, normalize="absolute"))[0, :3], [WHITE, RED, RED])


def test_unaligned_goes_from_the_smallest_to_the_largest():
    grey = pixels(heatmap(torch.tensor([[1.0, 2.0, 3.0]]), normalize="unaligned", cmap="gray"))[0, :, 0]
    np.testing.assert_array_equal(grey, [0, 128, 255])
    grey = heatmap(torch.tensor([[1.0, 2.0, 3.0]]), normalize="unaligned", cmap="gray", level=(0, 4))
    assert abs(pixels(grey)[0, :, 0].astype(int) - (64, 128, 191)).max() <= 1
    flat = pixels(heatmap(torch.full((2, 2), 7.0), normalize="unaligned"))
    assert (flat == 255).all()


def test_level_is_shared_and_clips():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[-4.0, 1.0]])
    level = viz.shared_level([a, b])
    assert level == 4
    np.testing.assert_array_equal(pixels(heatmap(a, level=level))[0, 0], pixels(heatmap(b, level=level))[0, 1])
    np.testing.assert_array_equal(pixels(heatmap(b, level=2)), pixels(heatmap(b.clamp(-2, 2), level=2)))
    assert tuple(pixels(heatmap(b, level=2))[0, 0].tolist()) == BLUE


def test_shared_level_of_what_explainers_return():
    relevance = torch.randn(2, 3, 4, 5, 6)
    summed = relevance.sum(2)
    expected = float(summed.abs().max())
    assert viz.shared_level(relevance) == pytest.approx(expected, rel=1e-6)
    assert viz.shared_level(list(summed.flatten(0, 1))) == pytest.approx(expected, rel=1e-6)
    assert viz.shared_level(list(relevance.flatten(0, 1))) == pytest.approx(expected, rel=1e-6)
    assert viz.shared_level(m for row in relevance for m in row) == pytest.approx(expected, rel=1e-6)
    half = float(np.quantile(summed.abs().numpy(), 0.5))
    assert viz.shared_level(relevance, quantile=0.5) == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize("normalize", ["symmetric", "absolute", "unaligned"])
def test_relevance_of_zero_is_flat_and_neutral(normalize, recwarn):
    assert (pixels(heatmap(torch.zeros(3, 4, 5), normalize=normalize)) == 255).all()
    assert (pixels(heatmap(torch.zeros(4, 5), normalize=normalize, zoom=2, resample="bilinear")) == 255).all()
    assert not recwarn.list
    assert (pixels(heatmap(torch.zeros(4, 5), level=0.0)) == 255).all()


def test_zoom_repeats_pixels_and_bilinear_blends_numbers():
    relevance = torch.tensor([[1.0, -1.0]])
    nearest = heatmap(relevance, zoom=3)
    assert nearest.size == (6, 3)
    np.testing.assert_array_equal(pixels(nearest), np.tile([RED] * 3 + [BLUE] * 3, (3, 1, 1)))
    smooth = pixels(heatmap(relevance, zoom=9, resample="bilinear", cmap="coldnhot"))
    # Numbers are blended, not colours: between white-hot and cyan lies black, the colour of zero.
    assert smooth[4, 8:10].max() < 90
    assert (smooth[4, 0] == 255).all()


@pytest.mark.parametrize(
    "given",
    [
        lambda r: r.numpy(),
        lambda r: r.double(),
        lambda r: r.half(),
        lambda r: r.bfloat16(),
        lambda r: r.clone().requires_grad_(),
        lambda r: torch.nn.Parameter(r),
        lambda r: r.T.contiguous().T,
        lambda r: r.repeat_interleave(2, 1)[:, ::2],
        lambda r: r.numpy()[::-1][::-1],
        lambda r: r.int(),
        lambda r: r.numpy().astype(np.int64),
        lambda r: r.to(torch.int8),
        lambda r: r.numpy().astype(">f4"),
        lambda r: r.tolist(),
        lambda r: r[None],
        lambda r: torch._neg_view(-r),
    ],
)
def test_any_kind_of_numbers(given):
    relevance = torch.tensor([[4.0, -2.0, 1.0], [0.0, 3.0, -4.0]])
    before = relevance.clone()
    np.testing.assert_array_equal(pixels(heatmap(given(relevance))), pixels(heatmap(relevance)))
    assert torch.equal(relevance, before)


def test_booleans_are_zero_and_one():
    np.testing.assert_array_equal(pixels(heatmap(np.array([[True, False]]))), [[RED, WHITE]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_on_a_gpu():
    relevance = torch.randn(3, 8, 8)
    np.testing.assert_array_equal(pixels(heatmap(relevance.cuda())), pixels(heatmap(relevance)))


@pytest.mark.parametrize("size", [1e-320, 1e-45, 1e-38, 1e30, 1e300])
def test_numbers_of_any_size(size, recwarn):
    relevance = np.array([[1.0, 0.0, -0.5]]) * size
    expected = pixels(heatmap(np.array([[1.0, 0.0, -0.5]])))
    for normalize in ("symmetric", "unaligned", "absolute"):
        found = pixels(heatmap(relevance, normalize=normalize))
        assert len({tuple(p) for p in found[0].tolist()}) == 3
    # Denormal numbers have few digits.
    assert abs(pixels(heatmap(relevance)).astype(int) - expected).max() <= (2 if size > 1e-300 else 1)
    assert not recwarn.list


def test_large_single_precision_numbers():
    relevance = torch.tensor([[3e38, -3e38]])
    for normalize in ("symmetric", "unaligned"):
        np.testing.assert_array_equal(pixels(heatmap(relevance, normalize=normalize)), [[RED, BLUE]])


def test_one_pixel_and_large_maps():
    assert tuple(pixels(heatmap([[-1e-9]])).ravel().tolist()) == BLUE
    image = heatmap(np.linspace(-1, 1, 6_000_000, dtype=np.float32).reshape(2000, 3000))
    assert image.size == (3000, 2000)
    assert image.getpixel((0, 0)) == BLUE
    assert image.getpixel((2999, 1999)) == RED


def test_speed_of_an_ordinary_map():
    """About 0.35 ms on one core of a Xeon; the bound says that it is no figure, which takes 50 ms or more."""
    import time

    relevance = torch.randn(3, 224, 224)
    heatmap(relevance)
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        heatmap(relevance)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.02
