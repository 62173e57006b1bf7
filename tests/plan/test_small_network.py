"""A small network must not drown in Python."""

import time

import torch

import fastlrp
from benchmarks.models import small_network

AT_MOST = 3.0
"""Ten classes of one digit, forward pass included, beside one forward pass and one gradient. Measured: 2.4."""


def best(run, n: int = 60) -> float:
    """Shortest of n runs: noise of other processes only adds."""
    found = []
    for _ in range(n):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return min(found)


def test_ten_classes_cost_at_most_three_gradients():
    torch.manual_seed(0)
    model, x = small_network().eval(), torch.rand(1, 1, 8, 8)
    explainer = fastlrp.Explainer(model, "epsilon_plus", example_inputs=x)

    def gradient():
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(model(leaf)[0, 3], leaf)

    ratios = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(10):
            gradient()
            explainer(x, "all")
            ratios.append(best(lambda: explainer(x, "all")) / best(gradient))
            if ratios[-1] <= AT_MOST:
                break
    finally:
        torch.set_num_threads(threads)
    assert min(ratios) <= AT_MOST, ratios
