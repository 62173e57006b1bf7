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
def elementwise_scaled(relevance: Tensor, coefficient: Tensor) -> Tensor: ...
def elementwise_rectified_sum(first: Tensor, second: Tensor, epsilon: float | None) -> tuple[Tensor, Tensor | None]: ...
def winograd_even(x: Tensor, scale: Tensor | None, padding: list[int], most: float) -> list[bool]: ...
def winograd_few_small(
    x: Tensor, weight: Tensor, bias: Tensor | None, divided: Tensor, padding: list[int], most: float
) -> list[bool]: ...
def winograd_tells(
    y: Tensor, x: Tensor, scale: Tensor, times: Tensor, sizes: Tensor, padding: list[int], most: float
) -> list[bool]: ...
def winograd_repair(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, divided: Tensor, padding: list[int], most: float
) -> list[bool]: ...
def conv_depth_transposed(
    x: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    positive: Tensor | None,
    sign: Tensor | None,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor: ...
def conv_few_transposed(
    x: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    size: list[int],
    stride: list[int],
    padding: list[int],
    narrow: bool = False,
) -> Tensor: ...
def conv_point_pack(matrices: list[Tensor], full: bool = False) -> Tensor: ...
def conv_point(x: Tensor, packed: Tensor, bias: Tensor | None, stride: list[int], not_negative: bool) -> Tensor: ...
def conv_point_coefficients(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    factor: Tensor | None,
    rule: str,
    alpha: float,
    epsilon: float,
    stride: list[int],
    times: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]: ...
def conv_point_transposed(
    relevance: Tensor,
    coefficients: list[Tensor],
    packed: Tensor,
    size: list[int],
    stride: list[int],
    in_full: bool = False,
) -> Tensor: ...
def conv_point_chosen(
    relevance: Tensor,
    coefficients: list[Tensor],
    above: Tensor,
    below: Tensor,
    sign: Tensor,
    stride: list[int],
) -> Tensor: ...
def conv_rest(
    whole: Tensor,
    part: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    most: float,
    alpha: float,
    beta: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, list[bool]]: ...
def conv_rest_of_box(
    whole: Tensor,
    part: Tensor,
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None,
    factor: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    most: float,
    epsilon: float,
) -> tuple[Tensor, list[bool]]: ...
def winograd_pack(weight: Tensor, turned: bool = False) -> Tensor: ...
def winograd_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    least: Tensor | None,
    padding: list[int],
    not_negative: bool = False,
    alike: bool = False,
    second: Tensor | None = None,
) -> Tensor: ...
def norm_relevance(relevance: Tensor, gain: Tensor | None, inverse_sigma: Tensor, centre: bool) -> Tensor: ...
def attention_relevance_into(
    c_query: Tensor,
    c_key: Tensor,
    c_value: Tensor,
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    share_query: float,
    share_key: float,
    share_value: float,
    epsilon: float,
) -> None: ...
def attention_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
    share_query: float,
    share_key: float,
    share_value: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]: ...
def attention_value_relevance(
    relevance: Tensor,
    query: Tensor,
    key: Tensor,
    log_sum: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    cap: float,
) -> Tensor: ...
def recurrence_relevance(
    relevance: Tensor,
    final: Tensor | None,
    weight: Tensor,
    entry: Tensor,
    scale: Tensor | None,
    carry: Tensor | None,
    gates: Tensor | None,
    output_entry: Tensor | None,
    output_scale: Tensor | None,
    reset: Tensor | None,
    projection: Tensor | None,
    input_weight: Tensor | None,
    spread: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

Pattern = tuple[Tensor, Tensor]  # offsets, channels
Rows = tuple[Tensor, Tensor | None, Tensor, Tensor]  # values, rows, offsets, channels
Summand = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]  # the same with a factor

def sparse_pattern(masks: list[tuple[Tensor, Tensor | None]]) -> Pattern: ...
def sparse_from_dense(relevance: Tensor, pattern: Pattern) -> Tensor: ...
def sparse_to_dense(source: Rows, batch: int, targets: int, size: list[int]) -> Tensor: ...
def sparse_sum(sources: list[Summand], pattern: Pattern, batch: int, targets: int) -> Tensor: ...
def sparse_winners(
    index: Tensor,
    pooled: Pattern,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def sparse_windows(
    wanted: Pattern,
    pooled: Pattern,
    batch: int,
    input_size: list[int],
    output_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def sparse_gather_sum(source: Rows, starts: Tensor, rows: Tensor, targets: int) -> Tensor: ...
def sparse_pack(weight: Tensor) -> Tensor: ...
def sparse_conv_relevance(
    arriving: Rows,
    batch: int,
    targets: int,
    coefficients: list[Tensor],
    weights: list[Tensor],
    channels_per_group: list[int],
    leaving: Pattern,
    input_size: list[int],
    output_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    channels: int | None,
    factors: list[Tensor],
    initial: list[Summand],
    other: Tensor | None = None,
    scales_leaving: bool = False,
) -> Tensor: ...
def sparse_release() -> None: ...
def sparse_kept_bytes() -> int: ...
def build_info() -> dict[str, str]: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...

class Bits:
    def __init__(self, parts: list[Tensor], rows: list[Tensor]) -> None: ...
    def look(self, first: int, bytes: int) -> int: ...

class Marks:
    def __init__(self, placed: list[Tensor], counted: list[Tensor]) -> None: ...
    def hold(self) -> bool: ...

def all_finite(tensor: Tensor) -> bool | None: ...
