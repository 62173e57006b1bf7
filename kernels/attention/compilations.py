"""What the launchers of attention may compile: samples of heads in every configuration of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.kernels.attention.call import TOGETHER, call_of, shape_class
from fastlrp.kernels.attention.forward import forward_launch
from fastlrp.kernels.attention.relevance import key_launch, query_launch
from fastlrp.kernels.attention.up import up_launch
from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import Config, configurations_of_classes
from fastlrp.kernels.launch import Launch

KERNELS = ("attention_forward", "attention_query", "attention_key", "attention_value", "attention_up")


@dataclass(frozen=True)
class Sample:
    """A call as its kernels see it; tensors have no data."""

    name: str
    features: int
    causal: bool = False
    cap: float = 0.0
    epsilon: float = 0.0
    mask: torch.dtype | None = None
    targets: int = 32
    heads_per_key: int = 1
    values_alone: bool = False
    tokens: int = 512

    def launch(self, kernel: str, dtype: torch.dtype, precision: str, config: Config) -> Launch:
        """The launch of one of :data:`KERNELS`; on the way up that of values alone where a sample says so."""
        B, K, G, H, S, D = 2, self.targets, 4, 4 * self.heads_per_key, self.tokens, self.features

        def empty(*size: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device="meta")

        mask = None if self.mask is None else empty(B, 1, S, S, dtype=self.mask)
        query, key, value = empty(B, H, S, D), empty(B, G, S, D), empty(B, G, S, D)
        log_sum, delta = empty(B, H, S, dtype=torch.float32), empty(B, K, H, S, dtype=torch.float32)
        given = None if kernel == "attention_value" else value
        call = call_of(query, key, given, mask, self.causal, 0.125, self.cap, D, precision)
        if kernel == "attention_forward":
            return forward_launch(call, config, empty(B, H, S, D), log_sum)
        relevance, down = empty(B, K, H, S, D), empty(B, K, G, S, D)
        if kernel == "attention_up":
            arriving = (None, None, down) if self.values_alone else (relevance, down, down)
            return up_launch(call, query, log_sum, arriving, (0.25, 0.25, 0.5), self.epsilon, relevance, config)
        if kernel == "attention_query":
            result = empty(B, K, H, S, D)
            return query_launch(call, relevance, query, log_sum, 0.25, self.epsilon, delta, result, config)
        if kernel == "attention_value":
            return key_launch(call, relevance, log_sum, (0.0, 0.5), 0.0, None, None, down, config)
        both = down if shape_class(D) in TOGETHER else None
        return key_launch(call, relevance, log_sum, (0.25, 0.5), self.epsilon, delta, down, both, config)


SAMPLES = (
    Sample("64", 64),
    Sample("64 causal, one target", 64, causal=True, targets=1),
    Sample("64 causal, up of values alone", 64, causal=True, values_alone=True),
    Sample("64 with everything", 64, True, 30.0, 1e-6, torch.float32, heads_per_key=4),
    Sample("48 with a mask of booleans", 48, mask=torch.bool),
    Sample("64 with a mask, 197 tokens", 64, mask=torch.bool, tokens=197),
    Sample("128 causal", 128, causal=True, heads_per_key=4),
    Sample("80", 80),
    Sample("256 causal", 256, causal=True, cap=50.0),
)


def compiled_samples(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel of attention in every configuration for its width, on samples of heads."""
    for precision in ("tf32", "ieee") if dtype == torch.float32 else ("ieee",):
        cores = dtype != torch.float32 or precision == "tf32"
        for kernel in KERNELS:
            classes = configurations_of_classes(kernel, dtype, precision)
            for sample in SAMPLES:
                if sample.values_alone and kernel != "attention_up":
                    continue
                for name, config in classes.get(shape_class(sample.features), {}).items():
                    if config.route == "fused":
                        launch = sample.launch(kernel, dtype, precision, config)
                        yield launch.compilation(f"{kernel}: {sample.name}, {precision}, {name}", cores)
