"""The definition of every operation and rule: textbook formulas in float64, slow and obvious.

``linear``, ``conv``, ``pool``, ``elementwise`` define the operations that the backends compute, under the same names
and with the same arguments. ``rules`` and ``structure`` state the rules of LRP themselves, in the steps z, s, c, R.
"""
