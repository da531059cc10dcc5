"""Identity mappings in deep residual networks, with every forward and backward pass written by hand.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027.
"""

__version__ = "0.1.0"
