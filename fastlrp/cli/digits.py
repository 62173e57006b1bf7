"""Drawn digits and a small network that reads them: what the demo needs, without data or a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fastlrp.cli.errors import need

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 28


def draw(digit: int, generator: np.random.Generator) -> Image:
    """A white digit on black, of random size, place, slant and noise, ``SIDE`` pixels wide and high."""
    pil = need("PIL.Image", "pillow")
    font = need("PIL.ImageFont", "pillow").load_default(size=int(generator.integers(19, 28)))
    sheet = pil.new("L", (2 * SIDE, 2 * SIDE))
    middle = tuple(SIDE + float(shift) for shift in generator.uniform(-2.5, 2.5, 2))
    need("PIL.ImageDraw", "pillow").Draw(sheet).text(middle, str(digit), fill=255, font=font, anchor="mm")
    turned = sheet.rotate(float(generator.uniform(-22, 22)), pil.Resampling.BILINEAR)
    edge = SIDE // 2
    pixels = np.asarray(turned.crop((edge, edge, edge + SIDE, edge + SIDE)), np.float64)
    noisy = pixels * generator.uniform(0.7, 1.0) + generator.normal(0, 14, pixels.shape)
    found: Image = pil.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return found


def samples(count: int, seed: int) -> tuple[list[Image], Tensor, Tensor]:
    """Pictures, input ``(count, 1, SIDE, SIDE)`` in [0, 1], digits ``(count,)``: 0 to 9 in turns."""
    generator = np.random.default_rng(seed)
    pictures = [draw(i % 10, generator) for i in range(count)]
    x = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float().unsqueeze(1) / 255
    return pictures, x, torch.arange(count) % 10


def network() -> nn.Sequential:
    """Two convolutions, two max-pools, two linear layers; 31,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16 * (SIDE // 4) ** 2, 36),
        nn.ReLU(),
        nn.Linear(36, 10),
    )


def train(model: nn.Module, x: Tensor, digits: Tensor, epochs: int = 10, batch: int = 50) -> None:
    """Adam on the cross-entropy, one cycle of its rate; leaves the model in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), digits[part]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
