from torch import Tensor

def pool_max_relevance(relevance: Tensor, index: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor: ...
def pool_ties_relevance(
    relevance: Tensor,
    input: Tensor,
    output: Tensor,
    scale: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor: ...
def pool_avg_relevance(
    relevance: Tensor,
    scale: Tensor | None,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor: ...
def pool_adaptive_avg_relevance(relevance: Tensor, scale: Tensor | None, input_size: list[int]) -> Tensor: ...
def elementwise_coefficients(
    z: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    factor: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
) -> tuple[Tensor | None, Tensor | None]: ...
def build_info() -> dict[str, str]: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
