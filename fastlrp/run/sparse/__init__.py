"""Shared sparsity: relevance for alive neurons only, the same ones for all targets of a sample (CPU, GPU).

:mod:`fastlrp.plan.forms` says what a backward step computes, ``wants`` what each register has to hold, and
``specialize`` turns the steps of a schedule into sparse ones for one forward pass. :mod:`fastlrp.plan.paths` decides
layer by layer where that pays, ``wholes`` compares whole ways down. :mod:`fastlrp.plan.compact` holds relevance in
between; ``upward`` goes the other way. The kernels are ``csrc/cpu/sparse_*`` and ``csrc/cuda/sparse_*``.
"""
