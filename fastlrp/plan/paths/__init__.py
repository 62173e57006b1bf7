"""Which layers go densely and which for alive neurons only: what each way costs, by the rates of the device, and the
choice. :mod:`fastlrp.run.sparse` asks for it with the densities of a forward pass.
"""
