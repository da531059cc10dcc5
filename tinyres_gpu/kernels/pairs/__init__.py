"""The kernels of the forward/backward pairs, and the Python files that launch them.

A pair is one layer, forward and backward; a step that composes pairs launches one after the other.
"""
