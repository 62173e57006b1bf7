"""From an exported program to our graph.

``program`` goes through the operations and ``emit`` makes nodes of each, by what ``calls`` and ``metadata`` say of it.
``memory`` and ``overlap`` are about tensors that share memory, ``module_paths`` about the modules that operations stand
in, ``folding`` about constants. ``rewrite`` and its neighbours spell out operations by others that have a rule,
``complex_numbers`` and ``pairs`` complex ones. ``mapped`` makes one operation of a function under ``torch.vmap``.
"""
