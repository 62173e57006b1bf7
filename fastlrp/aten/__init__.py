"""The ``torch`` backend: operations composed of PyTorch calls. Any device and dtype; no autograd.

Every function has the signature and the meaning of its namesake in :mod:`fastlrp.reference`.
"""
