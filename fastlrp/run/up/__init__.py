"""Relevance of groups of entries: up from the groups, or to an edge in between, and which way costs the least.

``grouped`` answers for groups of the input, ``contributions`` for every neuron; ``direction`` compares the ways, of
which ``middle`` and ``meeting`` are one. ``way_up`` is the way up of one record: ``stages`` cut it, ``ascent`` takes
its steps, in ``boxes`` (``boxed_ups``) or from a position on (``tails``, ``causal``).
"""
