"""Every kernel on a real GPU: the same checks as on the emulated one, run after run with equal bits."""

import pytest

from tests.kernels.test_pairs import CONVOLUTIONS
from tests.kernels.tools import check, check_rounded_conv, numbers
from tinyres.contract import Pair
from tinyres_gpu.kernels import layers, merges

cupy = pytest.importorskip("cupy")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cupy.cuda.is_available(), reason="no NVIDIA GPU is at hand"),
]


def from_host(pair):
    """Return a pair on the GPU as one that takes and gives NumPy arrays."""

    def to_gpu(x):
        return cupy.asarray(x) if hasattr(x, "ndim") else x

    def forward(*arrays, **options):
        *outputs, cache = pair.forward(*map(to_gpu, arrays), **options)
        return (*map(cupy.asnumpy, outputs), cache)

    def backward(dy, cache):
        gradients = pair.backward(to_gpu(dy), cache)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return tuple(None if g is None else cupy.asnumpy(g) for g in gradients)

    return Pair(forward, backward)


def table(precision="float32"):
    pairs = layers(precision=precision) | merges(precision=precision)
    return {name: from_host(pair) for name, pair in pairs.items()}


@pytest.mark.parametrize("sizes", CONVOLUTIONS, ids=str)
def test_conv(sizes):
    n, c_in, c_out, size, kernel, stride = sizes
    x, w = numbers(16 * n, c_in, size, size), numbers(c_out, c_in, kernel, kernel)
    check("conv", x, w, pairs=table(), stride=stride)
    if int(cupy.cuda.Device().compute_capability) >= 80:
        for precision in ("tf32", "bf16"):
            check_rounded_conv(precision, sizes, table(precision))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", ["bn", "bn_relu"])
def test_bn(name, groups):
    for c, size in ((16, 32), (64, 8), (40, 3)):
        x = numbers(64, c, size, size, offset=1.0)
        check(name, x, 1 + 0.1 * numbers(c), numbers(c, seed=1), pairs=table(), groups=groups)


def test_bn_relu_conv():
    arguments = [numbers(64, 16, 16, 16), 1 + 0.1 * numbers(16), numbers(16, seed=1), numbers(32, 16, 3, 3)]
    check("bn_relu_conv", *arguments, numbers(64, 32, 8, 8, seed=2), pairs=table(), stride=2, groups=2)


def test_smaller_layers_and_merges():
    pairs, s, f = table(), numbers(16, 20, 7, 5), numbers(16, 20, 7, 5, seed=1)
    check("relu", s, pairs=pairs)
    check("subsample", s, pairs=pairs, channels=33, stride=2)
    check("global_average_pool", s, pairs=pairs)
    check("linear", numbers(128, 64), numbers(10, 64), numbers(10), pairs=pairs)
    check("identity", s, f, pairs=pairs)
    check("scaling", s, f, pairs=pairs, shortcut_scale=0.3, residual_scale=0.7)
    check("dropout", s, f, numbers(16, 20, 7, 5, seed=2) > 0, pairs=pairs)
    check("exclusive-gating", s, f, numbers(20, 20, 1, 1), numbers(20), pairs=pairs)
    check("shortcut-only-gating", s, f, numbers(20, 20, 1, 1), numbers(20), pairs=pairs)
