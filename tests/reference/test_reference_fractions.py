"""Rules worked out by hand, as fractions."""

from __future__ import annotations

from fractions import Fraction as Q

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Affine
from tests.reference import textbook as rules
from tests.reference.cases import stabilizer

LRP0 = stabilizer(0.0)


def tensor(values: object) -> Tensor:
    def number(value: object) -> object:
        return [number(v) for v in value] if isinstance(value, list) else float(value)  # type: ignore[arg-type]

    return torch.tensor(number(values), dtype=torch.float64)


def linear(weight: object, bias: object = None) -> Affine:
    return Affine(F.linear, tensor(weight), None if bias is None else tensor(bias))


def check(got: Tensor, expected: object) -> None:
    torch.testing.assert_close(got, tensor(expected), rtol=1e-14, atol=1e-15)


# The layer of RelevancePropagation.jl's tests: z = (18, 25).
DENSE = linear([[3, 4], [5, 6]], [7, 8])
X = tensor([[1, 2]])
R = tensor([[[Q(1, 3), Q(2, 3)]]])


def test_lrp0_of_a_dense_layer() -> None:
    relevance, ledger = rules.epsilon(DENSE, X, R, LRP0)
    check(relevance, [[[Q(17, 90), Q(316, 675)]]])
    check(ledger.bias, [[Q(7, 18) * Q(1, 3) + Q(8, 25) * Q(2, 3)]])
    check(ledger.stabilizer, [[0]])
    check(ledger.dead, [[0]])


def test_lrp0_without_the_bias() -> None:
    relevance, ledger = rules.epsilon(DENSE, X, R, LRP0, zero_bias=True)
    check(relevance, [[[Q(3, 11) * Q(1, 3) + Q(5, 17) * Q(2, 3), Q(8, 11) * Q(1, 3) + Q(12, 17) * Q(2, 3)]]])
    check(ledger.bias, [[0]])


def test_epsilon_absorbs_its_share() -> None:
    relevance, ledger = rules.epsilon(linear([[1, 1]]), tensor([[1, 2]]), tensor([[[4]]]), stabilizer(1.0))
    check(relevance, [[[1, 2]]])
    check(ledger.stabilizer, [[1]])


def test_epsilon_takes_the_sign_of_a_negative_denominator() -> None:
    relevance, ledger = rules.epsilon(linear([[1, 1]]), tensor([[-1, -2]]), tensor([[[4]]]), stabilizer(1.0))
    check(relevance, [[[1, 2]]])
    check(ledger.stabilizer, [[1]])


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(1, 0, [-1, 0]), (2, 1, [-2, Q(1, 2)])], ids=["alpha1beta0", "alpha2beta1"]
)
def test_alpha_beta_with_a_negative_bias(alpha: int, beta: int, expected: list[Q]) -> None:
    layer, x = linear([[1, -1]], [-1]), tensor([[1, 1]])
    y = tensor([[[-1]]])
    relevance, ledger = rules.alpha_beta(layer, x, y, LRP0, alpha, beta)
    check(relevance, [[expected]])
    # Half of the negative part, -1 - 1, is the bias.
    check(ledger.bias, [[Q(beta, 2)]])
    if beta == 0:
        check(rules.zplus(layer, x, y, LRP0)[0], [[expected]])


def test_alpha_beta_with_inputs_of_both_signs() -> None:
    # Contributions 2, -3, 4, -1 and a bias of 6: P + b+ = 12, N + b- = -4.
    layer, x = linear([[2, -1, -2, 1]], [6]), tensor([[1, 3, -2, -1]])
    relevance, _ = rules.alpha_beta(layer, x, tensor([[[1]]]), LRP0, 2, 1)
    check(relevance, [[[Q(4, 12), Q(-3, 4), Q(8, 12), Q(-1, 4)]]])


def test_gamma_generalised() -> None:
    # RelevancePropagation.jl's case.
    # Neuron 0: contributions -1 and -4, bias -2, z = -7; neuron 1: -2 and 0, bias 3, z = 1.
    layer, x = linear([[1, -4], [2, 0]], [-2, 3]), tensor([[-1, 1]])
    R = tensor([[[Q(-7, 100), 1]]])
    relevance, ledger = rules.gamma(layer, x, R, LRP0, 0.25)
    below = Q(-7) + Q(1, 4) * -7
    above = Q(1) + Q(1, 4) * 3
    first = Q(-5, 4) / below * Q(-7, 100) + Q(-2) / above
    second = Q(-5) / below * Q(-7, 100)
    check(relevance, [[[first, second]]])
    check(ledger.bias, [[Q(-5, 2) / below * Q(-7, 100) + Q(15, 4) / above]])


def test_gamma_where_the_output_is_zero_is_dead() -> None:
    relevance, ledger = rules.gamma(linear([[1, -1]]), tensor([[1, 1]]), tensor([[[3]]]), LRP0, 0.25)
    check(relevance, [[[0, 0]]])
    check(ledger.dead, [[3]])


def test_plain_gamma_of_a_two_layer_network() -> None:
    # Captum's SimpleLRPModel with one weight of -2: activations (8, 12, 12), output 96.
    lower, upper = linear([[-2, 2, 2], [2, 2, 2], [2, 2, 2]]), linear([[3, 3, 3]])
    x, hidden = tensor([[1, 2, 3]]), tensor([[8, 12, 12]])
    top, _ = rules.modified_weights(upper, hidden, tensor([[[96]]]), LRP0, lambda w: w + 0.25 * w.clamp(min=0))
    check(top, [[[24, 36, 36]]])
    relevance, _ = rules.modified_weights(lower, x, top, LRP0, lambda w: w + w.clamp(min=0))
    check(relevance, [[[Q(28, 3), Q(104, 3), 52]]])
    # For x >= 0, outputs > 0 and no bias the generalised rule is the same.
    check(rules.gamma(lower, x, top, LRP0, 1.0)[0], [[[Q(28, 3), Q(104, 3), 52]]])
    check(rules.zplus(lower, x, top, LRP0)[0], [[[12, Q(168, 5), Q(252, 5)]]])


def test_zbox() -> None:
    # low 0, high 4: z = (1*3 + 2*(-1)) - 0 - 4*(-1) = 5; shares 3 - 0 and -2 + 4.
    relevance, ledger = rules.zbox(linear([[3, -1]], [9]), tensor([[1, 2]]), tensor([[[1]]]), LRP0, 0.0, 4.0)
    check(relevance, [[[Q(3, 5), Q(2, 5)]]])
    check(ledger.bias, [[0]])


def test_zbox_with_bounds_per_input() -> None:
    # Shares: 1*3 + 1*3 and 2*(-1) + 3*1.
    low, high = tensor([[-1, -5]]), tensor([[9, 3]])
    relevance, _ = rules.zbox(linear([[3, -1]]), tensor([[1, 2]]), tensor([[[7]]]), LRP0, low, high)
    check(relevance, [[[6, 1]]])


def test_wsquare() -> None:
    layer = linear([[1, 2], [3, -1]], [2, 0])
    relevance, ledger = rules.wsquare(layer, X, tensor([[[9, 10]]]), LRP0)
    check(relevance, [[[1 + 9, 4 + 1]]])
    check(ledger.bias, [[4]])
    relevance, _ = rules.wsquare(layer, X, tensor([[[5, 10]]]), LRP0, zero_bias=True)
    check(relevance, [[[1 + 9, 4 + 1]]])


def test_flat_counts_the_inputs_that_are_there() -> None:
    # A convolution of width 3 with padding 1 sees 2, 3, 2 of the 3 inputs.
    layer = Affine(lambda x, w, b: F.conv1d(x, w, b, padding=1), tensor([[[5, 6, 7]]]), None)
    relevance, _ = rules.flat(layer, tensor([[[1, 2, 3]]]), tensor([[[[2, 3, 4]]]]), LRP0)
    check(relevance, [[[[1 + 1, 1 + 1 + 2, 1 + 2]]]])


def test_convolution_with_a_shared_kernel() -> None:
    # Captum's rule test: kernel (2, 2), input (1, 5, 7), z = (12, 24).
    layer = Affine(F.conv1d, tensor([[[2, 2]]]), None)
    relevance, _ = rules.epsilon(layer, tensor([[[1, 5, 7]]]), tensor([[[[0, 3]]]]), LRP0)
    check(relevance, [[[[0, Q(5, 4), Q(7, 4)]]]])


def test_skip_connection() -> None:
    # y = a + relu(DENSE(a)) = (19, 27); RelevancePropagation.jl's case, both targets at once.
    hidden = tensor([[18, 25]])
    (skip, branch), ledger = weightless.norm_sum([X, hidden], tensor([[[1, 0], [0, 1]]]), LRP0)
    relevance = skip + rules.epsilon(DENSE, X, branch, LRP0)[0]
    check(relevance, [[[Q(4, 19), Q(8, 19)], [Q(5, 27), Q(14, 27)]]])
    check(ledger.stabilizer, [[0, 0]])


def test_sum_that_broadcasts() -> None:
    # (1, 2) + (3, broadcast): y = (4, 5).
    shares, _ = weightless.norm_sum([tensor([[1, 2]]), tensor([[3]])], tensor([[[4, 10]]]), LRP0)
    check(shares[0], [[[1, 4]]])
    check(shares[1], [[[3 + 6]]])


def test_sum_with_a_tensor_that_has_no_batch_axis() -> None:
    x = tensor([[[1, 1], [2, 2]], [[3, 3], [4, 4]]])
    shares, _ = weightless.norm_sum([x, tensor([1, 2])], torch.ones(2, 3, 2, 2, dtype=torch.float64), LRP0)
    assert [tuple(share.shape) for share in shares] == [(2, 3, 2, 2), (2, 3, 2)]
    check(shares[1][:, 0], [[Q(1, 2) + Q(1, 3), Q(2, 3) + Q(2, 4)], [Q(1, 4) + Q(1, 5), Q(2, 5) + Q(2, 6)]])


OVERLAP = tensor([[[[1, 2, 3], [10, 5, 6], [7, 8, 9]]]])
OVERLAP_R = tensor([[[[[Q(1, 30), Q(2, 30)], [Q(3, 30), Q(4, 30)]]]]])


def pool(x: Tensor, R: Tensor, mode: weightless.MaxPoolMode) -> Tensor:
    return weightless.max_pool(x, R, mode, [2, 2], [1, 1], [0, 0], [1, 1], False, LRP0)[0]


def test_max_pool_with_overlapping_windows() -> None:
    expected = [[[[[0, 0, 0], [Q(4, 30), 0, Q(2, 30)], [0, 0, Q(4, 30)]]]]]
    check(pool(OVERLAP, OVERLAP_R, "winner"), expected)
    check(pool(OVERLAP, OVERLAP_R, "ties"), expected)


def test_max_pool_ties() -> None:
    x, R = tensor([[[[3, 3], [3, 1]]]]), tensor([[[[[6]]]]])
    check(pool(x, R, "winner"), [[[[[6, 0], [0, 0]]]]])
    check(pool(x, R, "ties"), [[[[[2, 2], [2, 0]]]]])
    check(pool(x, R, "sum"), [[[[[Q(9, 5), Q(9, 5)], [Q(9, 5), Q(3, 5)]]]]])
    check(pool(x, R, "average"), [[[[[Q(9, 5), Q(9, 5)], [Q(9, 5), Q(3, 5)]]]]])


def test_average_and_sum_differ_in_what_epsilon_weighs() -> None:
    x, R = tensor([[[[1, 1], [1, 1]]]]), tensor([[[[[10]]]]])
    arguments = ([2, 2], [2, 2], [0, 0], [1, 1], False, stabilizer(1.0))
    check(weightless.max_pool(x, R, "sum", *arguments)[0], [[[[[2, 2], [2, 2]]]]])
    check(weightless.max_pool(x, R, "average", *arguments)[0], [[[[[Q(5, 4), Q(5, 4)], [Q(5, 4), Q(5, 4)]]]]])


def test_unknown_pool_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mode: expected .* got 'mean'"):
        pool(OVERLAP, OVERLAP_R, "mean")  # type: ignore[arg-type]


def test_norm_of_an_affine_map_leaves_the_constant_its_share() -> None:
    relevance, ledger = weightless.norm(lambda x: 2 * x + 6, tensor([[1, 3]]), tensor([[[8, 24]]]), LRP0)
    check(relevance, [[[2, 12]]])
    check(ledger.bias, [[18]])


def test_zero_denominator_is_dead() -> None:
    relevance, ledger = rules.epsilon(linear([[1, -1]], [0]), tensor([[1, 1]]), tensor([[[5]]]), LRP0)
    check(relevance, [[[0, 0]]])
    check(ledger.dead, [[5]])


def test_neuron_that_only_its_bias_feeds_is_dead() -> None:
    relevance, ledger = rules.zplus(linear([[-1, -2]], [4]), tensor([[1, 1]]), tensor([[[5]]]), stabilizer(1.0))
    check(relevance, [[[0, 0]]])
    check(ledger.dead, [[5]])
    check(ledger.bias, [[0]])


def test_gradient_family() -> None:
    x, R = tensor([[2, -3]]), tensor([[[5, 7]], [[-1, 1]]])[:1]
    check(weightless.gradient(torch.relu, x, R), [[[5, 0]]])
    check(weightless.deconvnet(tensor([[[5, -7]]])), [[[5, 0]]])
    check(weightless.guided_backprop(x, tensor([[[5, 7], [-1, 1]]])), [[[5, 0], [0, 0]]])
