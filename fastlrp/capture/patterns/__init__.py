"""What a model spells out in several operations, found in its graph: attention, its weights, activations, selection.

One file for each thing to find. :mod:`fastlrp.capture.canonizers` has the passes that ask them, and lowering asks for
attention.
"""
