"""The kernels of the forward/backward pairs, and the Python files that launch them.

A pair is one layer, forward and backward; a composed step launches one pair after the other.
"""
