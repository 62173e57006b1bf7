"""Public architectures with random weights: which of them are explained, and whether rightly. ``python -m benchmarks.zoo``."""
