"""Figure 2: how the shortcut's signal s and the residual F(x) meet in a unit.

Each name of ``--shortcut`` is one drawing of the figure. The pairs that compute them are in `tinyres.ops`. The
1x1 convolutional shortcut (e) has no pair of its own: it is a convolution on the way to s, option C, under the
identity merge.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Merge:
    """One drawing of Fig. 2.

    Attributes
    ----------
    pair : str
        Its name in a backend's table of merges.
    scaled : bool
        Takes the numbers lambda and mu.
    gated : bool
        Has the parameters W_g and b_g of a gate.
    masked : bool
        Takes a dropout mask in training, and the rate instead at test time.
    """

    pair: str
    scaled: bool = False
    gated: bool = False
    masked: bool = False


FIGURE_2 = {
    "identity": Merge("identity"),  # (a)
    "scaling": Merge("scaling", scaled=True),  # (b)
    "exclusive-gating": Merge("exclusive-gating", gated=True),  # (c)
    "shortcut-only-gating": Merge("shortcut-only-gating", gated=True),  # (d)
    "conv": Merge("identity"),  # (e)
    "dropout": Merge("dropout", masked=True),  # (f)
}
