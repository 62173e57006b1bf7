"""Shared sparsity: relevance for alive neurons only, the same ones for all targets of a sample (CPU, GPU).

:mod:`fastlrp.plan.forms` says what a backward step computes, ``specialize`` turns the steps of a schedule into sparse
ones for one forward pass, ``choose`` decides where that pays by the device's ``rates``, :mod:`fastlrp.plan.compact`
holds relevance in between. The kernels are ``csrc/cpu/sparse_*`` and ``csrc/cuda/sparse_*``.
"""
