"""Complex activations carry relevance as real and imaginary parts: autograd, the textbook and fractions by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import rules
from fastlrp.capture.translate.complex_numbers import Translation
from tests.directions.adjoint import LARGEST, errors_of_steps
from tests.models.cases import Written
from tests.models.kind_cases import relevance_of


def _spectral_convolution(m: Any, h: Tensor) -> Tensor:
    """A layer of a Fourier neural operator: the lowest frequencies by weights, written into zeros."""
    f = torch.fft.rfft2(h.view(-1, 2, 4, 4))
    out = torch.zeros(len(h), 3, 4, 3, dtype=torch.cfloat).to(f.dtype)
    out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, :2, :2], m.modes)
    out[:, :, -2:, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, -2:, :2], m.modes.conj())
    return torch.fft.irfft2(out, s=(4, 4))


def _moves(m: Any, h: Tensor) -> Tensor:
    z = torch.fft.fft(h.view(-1, 4, 2), dim=1)[:, :2]
    first = torch.cat([z.flip(1).transpose(1, 2), z[:, :2].roll(1, -1)], -1)
    a, b = torch.fft.fftshift(first, dim=-1).chunk(2, -1)
    return torch.stack([(a - b.conj()).sum(1).imag, F.pad(b.select(-1, 0), (1, 0))[:, :2].real], 1)


def _by_phase(m: Any, h: Tensor) -> Tensor:
    """Real parts of numbers of a length and a phase, of others times a constant and of a mean."""
    turned = torch.polar(h[:, :4].exp(), h[:, 4:]) * m.c[:4] / (1 + 2j)
    return torch.cat([turned.real, torch.complex(h[:, :4], h[:, 4:]).mean(1, keepdim=True).neg().imag], 1)


def _written(m: Any, h: Tensor) -> Tensor:
    """Real parts, and complex numbers of which real ones are parts, are written in place."""
    z = torch.complex(h[:, :4], h[:, 4:]) * 2
    z.real[:, 0] = h[:, 0] * 3
    z[:, 1:3] = h[:, 5:7]
    torch.view_as_complex(again := (h * 1).view(-1, 4, 2))[:, 1:3] = z[:, 2:] * 1j
    return torch.cat([torch.view_as_real(z), again], 1)


def _as_floats(z: Tensor) -> Tensor:
    return z.view(z.shape[0], z.size(-1)).view(torch.float64)


CASES: dict[str, tuple[int, Callable[[Any, Tensor], Tensor]]] = {
    "filter": (8, lambda m, h: torch.fft.irfft(torch.fft.rfft(h) * m.c, n=8)),
    "magnitudes": (8, lambda m, h: torch.fft.rfft(h).abs() ** 2),
    "correlation": (8, lambda m, h: torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(h.flip(1)).conj(), n=8)),
    "gate": (8, lambda m, h: torch.view_as_real(torch.fft.rfft(h) * h[:, :5].sigmoid() + m.p)),
    "linear": (8, lambda m, h: F.linear(torch.fft.rfft(h), m.w, m.c).imag),
    "made_complex": (8, lambda m, h: (h[:, :5].to(m.w.dtype) @ m.w).real),
    "rotary": (8, lambda m, h: torch.view_as_real(torch.view_as_complex(h.view(-1, 4, 2)) * m.c[:4])),
    "phase": (8, _by_phase),
    "moves": (8, _moves),
    "fourier_mixing": (24, lambda m, h: torch.fft.fft(torch.fft.fft(h.view(-1, 4, 6), dim=-1), dim=-2).real),
    "another_batch_axis": (24, lambda m, h: torch.fft.fft(h.view(-1, 4, 6).transpose(0, 1), dim=0).real.mean(0)),
    "spectral_convolution": (32, _spectral_convolution),
    "windows": (
        24, lambda m, h: torch.istft(
            torch.stft(h, 4, 2, window=m.window, return_complex=True) * 0.5, 4, 2, window=m.window, length=24
        ),
    ),
    "parts_of_windows": (24, lambda m, h: torch.stft(h, 4, 2, window=m.window, return_complex=False)),
    "written": (8, _written),
    "spectrogram": (24, lambda m, h: torch.stft(h, 4, 2, window=m.window, return_complex=True).abs()),
}  # fmt: skip


def model_of(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size, body = CASES[name]

    def complex_parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, dtype=torch.complex128))

    def forward(m: Any, x: Tensor) -> Tensor:
        y = body(m, m.a(x)).flatten(1)
        number = torch.arange(1, y.shape[1] + 1, dtype=y.dtype)
        return y @ torch.stack([(number * 0.7).sin(), (number * 1.3).cos()], 1)

    model = Written(
        forward, a=nn.Linear(5, size), c=complex_parameter(5), w=complex_parameter(5, 5),
        modes=complex_parameter(2, 3, 2, 2), p=nn.Parameter(torch.randn(5)),
    ).double()  # fmt: skip
    model.register_buffer("window", torch.hann_window(4).double())
    return model.eval(), torch.randn(3, 5).double()


@pytest.mark.filterwarnings("ignore:stft with return_complex")
@pytest.mark.parametrize("name", CASES)
def test_real_and_imaginary_parts(name: str) -> None:
    model, x = model_of(name)
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    point = x.clone().requires_grad_()
    output = model(point)
    expected = [torch.autograd.grad(output[:, k].sum(), point, retain_graph=True)[0] for k in range(2)]
    with explainer.forward(x) as record:
        torch.testing.assert_close(record.output, output.detach(), rtol=1e-12, atol=1e-12)
        found = record.under("gradient").relevance("all", initial="one")
        torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-9, atol=1e-9)
        for composite in ("gradient", "epsilon_plus"):
            assert max(errors_of_steps(record.under(composite)).values()) < LARGEST
    report = explainer.verify(x, "all")
    assert report.ok, str(report)
    assert abs(report.kept["unexplained"]) < 1e-8, str(report)
    torch.testing.assert_close(explainer(x[1:2], "all"), explainer(x, "all")[1:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("of", [lambda z: z.conj() + 0.5, lambda z: z * 1j - (1 + 2j), lambda z: z.conj() * z])
def test_numbers_take_the_models_precision(of: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Written(lambda m, h: of(torch.fft.rfft(h)).imag), nn.Linear(5, 2)).eval()
    x = torch.randn(2, 4)
    found = fastlrp.explain(model, x, "all", "epsilon")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fastlrp.explain(model.double(), x.double(), "all", "epsilon").float(),
                               rtol=1e-3, atol=1e-4)  # fmt: skip


def test_numbers_stand_on_the_models_device() -> None:
    """Beside activations on a GPU; the device without numbers stands in for one."""
    meta = torch.device("meta")
    made = Translation("mul", torch.mul, (), {}, {}, [], [True], torch.float32, meta, lambda *args, **kwargs: args)  # type: ignore[arg-type,return-value]
    assert made.parts(1 + 2j).tensor().device == meta


def test_fractions_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0]]).double()
    for function, expected in (
        # Sums 1 + 3 = 4 and 1 - 3 = -2, of which the first gets 12.
        (lambda x: torch.fft.fft(x).real, [12 * 1 / 4, 12 * 3 / 4]),
        # 1 + 3i has the length sqrt(10).
        (lambda x: torch.view_as_complex(x[:, None]).abs(), [12 * 1 / 10, 12 * 9 / 10]),
        # (1 + 3i)(2 - i) = 5 + 5i: its real part is 1 * 2 + 3 * 1.
        (lambda x: (torch.complex(x[:, :1], x[:, 1:]) * (2 - 1j)).real, [12 * 2 / 5, 12 * 3 / 5]),
        # (1 + 3i)^2 = -8 + 6i: half of 1 * 1 - 3 * 3 to each factor, which both are the same.
        (lambda x: (lambda z: z * z)(torch.complex(x[:, :1], x[:, 1:])).real, [12 * 1 / -8, 12 * -9 / -8]),
        # Real and imaginary parts side by side, of a tensor whose size is asked for.
        (
            lambda x: _as_floats(torch.complex(x[:, :1], x[:, 1:]).to(torch.complex128)).sum(1, keepdim=True),
            [12 * 1 / 4, 12 * 3 / 4],
        ),
    ):
        found = relevance_of(function, x)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_relevance_of_a_complex_layer() -> None:
    """A module that returns complex numbers has relevance of both parts, which adds up to what arrives."""

    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x)

    model = nn.Sequential(Spectrum(), Written(lambda m, z: z.abs()), nn.Linear(3, 2)).double().eval()
    found = fastlrp.explain(model, torch.randn(2, 4).double(), "all", "lrp0", layers=["0", "1"])
    assert found["0"].shape == (2, 2, 3, 2)
    torch.testing.assert_close(found["0"].sum(-1), found["1"])
    own = fastlrp.composites.lrp0().with_entries((Spectrum, rules.Norm(1.0)))
    assert fastlrp.Explainer(model, own).verify(torch.randn(2, 4).double(), "all").ok
