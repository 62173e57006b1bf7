"""Triton kernels, one file per stem; installed as ``fastlrp.kernels``."""
