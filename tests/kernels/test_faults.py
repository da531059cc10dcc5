"""Kernels damaged on purpose: the emulator and the factor-of-two rule must notice every one of them."""

from dataclasses import dataclass

import numpy as np
import pytest

from tests.kernels.emulator import EmulatedModule, EmulationError
from tests.kernels.tools import EMULATED, EmulatedDevice, check, check_rounded_conv, require_compiler
from tinyres_gpu.check.oracle import numbers
from tinyres_gpu.kernels import layers

pytestmark = require_compiler


@dataclass(frozen=True)
class Fault:
    what: str
    pair: str  # that shows it
    kernels: tuple[str, ...]  # of one module: all that the pair needs of it
    before: str
    after: str
    place: int = 0  # which occurrence of `before`


PRECISION = {"conv": "float32", "bn": "float32", "conv in tf32": "tf32", "conv in bf16": "bf16"}

CONV = ("conv<16>",)
WEIGHTS = ("conv_weight_gradient<16>", "sum_weight_gradients")
MOMENTS = ("bn_moments", "merge_moments")
SUMS = ("bn_sums<false>", "bn_input_gradient<false>", "bn_output<false>", "merge_bn_sums")
TF32 = ("conv_tensor_core<16, false>", "conv_weight_gradient_tensor_core<16, false>")
BF16 = ("conv_tensor_core<16, true>", "conv_weight_gradient_tensor_core<16, true>")

FAULTS = [
    Fault("no barrier after the tiles are filled", "conv", CONV, "__syncthreads();", "", 1),
    Fault("no barrier before they are filled again", "conv", CONV, "__syncthreads();", "", 2),
    Fault(
        "some threads skip the barrier", "conv", CONV, "__syncthreads();", "if (k < depth) __syncthreads();", 1
    ),
    Fault("weights beyond the last row", "conv", CONV, "k < depth && o < out_channels", "o < out_channels"),
    Fault(
        "padding is not zero", "conv", CONV, "return at < size ? at : -1", "return at < size ? max(at, 0) : -1"
    ),
    Fault("outputs beyond the last pixel", "conv", CONV, "if (i < count && o <", "if (o <"),
    Fault("stale values instead of zeros", "conv", CONV, "] = value;", "] = value + 0 * window[t % DEPTH][i];"),
    Fault("every tap but one row off", "conv", CONV, "out * stride + tap - border", "out * stride + tap"),
    Fault(
        "every tap on the diagonal",
        "conv",
        CONV,
        "{tap / kernel_size, tap % kernel_size",
        "{tap / kernel_size, tap / kernel_size",
    ),
    Fault(
        "the gradient reads where nothing was read",
        "conv",
        CONV,
        "at % stride != 0",
        "false",
    ),
    Fault("no barrier after the tiles are filled", "conv", WEIGHTS, "__syncthreads();", "", 1),
    Fault("no barrier before they are filled again", "conv", WEIGHTS, "__syncthreads();", "", 2),
    Fault("zeros are not written", "conv", WEIGHTS, "= from >= 0 ? x[from] : 0;", "= x[from];"),
    Fault(
        "shared memory is left as it was",
        "conv",
        WEIGHTS,
        "window[i / ROWS]",
        "if (from >= 0) window[i / ROWS]",
    ),
    Fault("splits overlap", "conv", WEIGHTS, "min(pixels, begin + p", "min(pixels, RUN + begin + p"),
    Fault("the last split is forgotten", "conv", WEIGHTS, "partial + i, splits", "partial + i, splits - 1"),
    Fault("no barrier after the tiles are filled", "conv in bf16", BF16, "__syncthreads();", "", 1),
    Fault("no barrier before they are filled again", "conv in tf32", TF32, "__syncthreads();", "", 2),
    Fault(
        "halves of a exchanged",
        "conv in bf16",
        BF16,
        "rows[row + i % 2 * 8][",
        "rows[row][",
    ),
    Fault(
        "halves of b exchanged",
        "conv in tf32",
        TF32,
        "+ row][step * 8 + word + 4]};",
        "+ row][step * 8 + word]};",
    ),
    Fault(
        "low and high exchanged in a", "conv in bf16", BF16, "(values[0], values[1])", "(values[1], values[0])"
    ),
    Fault("columns of d exchanged", "conv in bf16", BF16, "lane % 4 * 2 + column", "lane % 4 * 2 + 1 - column"),
    Fault("cut off instead of rounded", "conv in tf32", TF32, "to_tf32(low)", "*(unsigned*)&low"),
    Fault("outputs beyond the last pixel", "conv in tf32", TF32, "pixel < count && o", "o"),
    Fault("an odd pixel at the end of a split", "conv in bf16", BF16, "pixel < end && o <", "o <"),
    Fault("no barrier before the tree", "bn", MOMENTS, "__syncthreads();", "", 0),
    Fault("no barrier in the tree", "bn", MOMENTS, "__syncthreads();", "", 1),
    Fault("merging forgets the distance of the means", "bn", MOMENTS, " + delta * delta * a.count * share", ""),
    Fault(
        "a run's end is not looked at", "bn", MOMENTS, "i < count ? values[i] - mean : 0", "values[i] - mean"
    ),
    Fault("no barrier before the tree", "bn", SUMS, "__syncthreads();", "", 0),
    Fault("no barrier in the tree", "bn", SUMS, "__syncthreads();", "", 1),
    Fault("groups share a sum", "bn", SUMS, "(which * groups + group) * blocks", "which * groups * blocks"),
]


def damaged(fault):
    """Return the pairs, with the fault in one kernel."""

    def compile_damaged(source, names):
        if not set(fault.kernels) <= set(names):
            return EmulatedModule(source, names)
        parts = source.split(fault.before)
        assert len(parts) > fault.place + 1, f"the source has changed: {fault.before!r} is not there"
        start, end = parts[: fault.place + 1], parts[fault.place + 1 :]
        return EmulatedModule(fault.before.join(start) + fault.after + fault.before.join(end), fault.kernels)

    return layers(EmulatedDevice(compile_damaged, lambda: np, lambda x: x.ctypes.data), PRECISION[fault.pair])


def run(pair, pairs):
    """Run a small case that uses everything: blocks, splits, groups, a last tile that is not full."""
    if pair == "conv":
        check("conv", numbers(2, 5, 23, 23), numbers(9, 5, 3, 3), pairs=pairs, stride=2)
    elif pair in ("conv in tf32", "conv in bf16"):
        check_rounded_conv(PRECISION[pair], (2, 5, 9, 25, 3, 2), pairs)
    else:
        x = numbers(4, 9, 17, 17, offset=1.0)
        check("bn", x, 1 + 0.1 * numbers(9), numbers(9), pairs=pairs, groups=2)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernels[0]}: {fault.what}")
def test_a_planted_fault_is_caught(fault):
    with pytest.raises((AssertionError, EmulationError)) as caught:
        run(fault.pair, damaged(fault))
    assert "the source has changed" not in str(caught.value)


@pytest.mark.parametrize("pair", PRECISION)
def test_the_same_case_without_a_fault_passes(pair):
    run(pair, layers(EMULATED, PRECISION[pair]))
