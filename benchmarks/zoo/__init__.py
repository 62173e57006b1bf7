"""Public architectures with random weights: which are explained, and whether rightly. ``python -m benchmarks.zoo``."""
