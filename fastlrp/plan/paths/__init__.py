"""Which layers are computed densely and which for alive neurons only: what either costs, and the choice.

``rates`` is how fast the device is, ``choose`` decides for one layer from its shape and densities, ``path`` is what
came out. :mod:`fastlrp.run.sparse` asks with the densities of a forward pass.
"""
