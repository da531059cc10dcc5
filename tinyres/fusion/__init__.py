"""Fused layers: the faster backends use them in place of consecutive batch norm, ReLU and convolution.

Pre-activation networks are made of such sequences. `tinyres.fusion.pairs` has the pairs, defined as
compositions of the textbook's; `tinyres.fusion.rewrite` puts them into chains.
"""
