"""The batch axis: which operations keep samples apart, where it stands, and graphs in which it travels.

``batch_axis`` and ``standing`` prove from the arguments of operations where the batch is, ``probe`` tries what they do
not prove. ``graphs`` rewrites a graph so that the batch stays in front: ``moves``, ``layers`` and ``messages`` have the
forms of operations, ``lifter`` what these share. ``proof`` and ``check`` hold that a form is right. ``unmapped`` takes
the same forms for functions under ``torch.vmap``.
"""
