"""Figure 5: an activation after the addition that acts on the F path only is the next unit's pre-activation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gradients.test_pairs import picker
from tests.gradients.test_units import parameter_shapes, plain_unit
from tinyres.backend import get_backend
from tinyres.chain import Pass
from tinyres.checks.cases import Draw, draw_parameters
from tinyres.fusion.pairs import BN_RELU
from tinyres.layers import LAYERS

reference = get_backend("reference")


class Asymmetric:
    """Fig. 5(b), written out: unit l adds F to y and hands y on, and beside it f^(y) for the next branch.

    The activations are numbered as in the pre-activation units: f^ after the addition of unit l has the
    parameters of the first batch norm of unit l + 1.
    """

    def __init__(self, params, groups):
        self.params, self.groups = params, groups

    def activation(self, name):
        return self.params[name + ".weight"], self.params[name + ".bias"]

    def forward(self, y, units):
        self.caches = []
        a, _, _, cache = BN_RELU.forward(y, *self.activation(f"{units[0].name}.branch.bn1"), groups=self.groups)
        self.caches.append(cache)
        for unit, following in zip(units, (*units[1:], None), strict=True):
            f, conv1 = LAYERS["conv"].forward(a, self.params[f"{unit.name}.branch.conv1.weight"])
            f, _, _, bn2 = BN_RELU.forward(f, *self.activation(f"{unit.name}.branch.bn2"), groups=self.groups)
            f, conv2 = LAYERS["conv"].forward(f, self.params[f"{unit.name}.branch.conv2.weight"])
            y = y + f
            self.caches.append((conv1, bn2, conv2))
            if following is not None:
                a, _, _, cache = BN_RELU.forward(
                    y, *self.activation(f"{following.name}.branch.bn1"), groups=self.groups
                )
                self.caches.append(cache)
        return y

    def backward(self, dy):
        """Return dE/dy before the first unit, and the gradients of the branch's first weights from the end."""
        caches = list(self.caches)
        first_weights = []
        while caches:
            conv1, bn2, conv2 = caches.pop()
            df, _ = LAYERS["conv"].backward(dy, conv2)
            df, _, _ = BN_RELU.backward(df, bn2)
            da, dw = LAYERS["conv"].backward(df, conv1)
            through_activation, _, _ = BN_RELU.backward(da, caches.pop())
            dy = dy + through_activation
            first_weights.append(dw)
        return dy, first_weights


@pytest.mark.parametrize("groups", [1, 2])
@given(data=st.data())
def test_asymmetric_after_addition_is_preactivation(groups, data):
    draw = Draw(picker(data))
    units = [plain_unit("preactivation", "basic", number=number) for number in range(draw.pick(1, 4))]
    params = {}
    for unit in units:
        params |= draw_parameters(draw, parameter_shapes(unit))
    x = draw.array(4, 2, 3, 3)

    asymmetric = Asymmetric(params, groups)
    y = asymmetric.forward(x, units)
    x_next, caches = x, []
    for unit in units:
        x_next, _, cache = unit.forward(Pass(reference, params, groups), x_next)
        caches.append(cache)
    np.testing.assert_array_equal(x_next, y)

    d = dy = draw.array(*y.shape)
    dx, first_weights = asymmetric.backward(dy)
    for unit, cache, dw in zip(reversed(units), reversed(caches), first_weights, strict=True):
        d, gradients = unit.backward(reference, d, cache)
        np.testing.assert_array_equal(gradients[f"{unit.name}.branch.conv1.weight"], dw)
    np.testing.assert_array_equal(d, dx)
