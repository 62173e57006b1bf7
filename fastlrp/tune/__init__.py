"""Measuring tile sizes for the Triton kernels: ``python -m fastlrp.tune``."""
