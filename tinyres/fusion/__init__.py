"""Fused layers: what the engines put in place of batch norm, ReLU and convolution that stand in a row.

Pre-activation networks are made of such rows. `tinyres.fusion.pairs` has the pairs, defined as compositions of
the textbook's; `tinyres.fusion.rewrite` puts them into chains.
"""
