"""Fused kernels damaged on purpose: comparing whole steps with the textbook's must notice each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from tests.kernels.emulator import EmulatedModule, EmulationError, schedule
from tests.kernels.tools import EMULATED, EmulatedDevice, require_compiler
from tests.plan.tools import assert_as_good, build, gradients_of, planned, textbook
from tinyres_gpu.kernels.common.sources import KERNELS, read_source

pytestmark = require_compiler

SIZES = {"float32": (12, 12), "bf16": (16, 16)}
"""Of images, by precision: tiles that are not full, and two splits of a weight gradient. Rounded to bfloat16,
fewer pixels would leave the last stage to a ReLU or two."""


@dataclass(frozen=True)
class Fault:
    what: str
    kernel: str  # that has it; all others are as they are
    before: str
    after: str
    network: str = "the default"
    place: int = 0  # which occurrence of `before`
    seed: int = 1  # of the schedule that shows it
    precision: str = "float32"


CONV, DATA, WEIGHTS = (f"fused_{name}<16, Float32>" for name in ("conv", "data_gradient", "weight_gradient"))
STAGED = "fused_conv<16, Staged<16, Bf16>>"
BOTH, BOTH_64 = (f"fused_gradients<16, {channels}, 1, 3>" for channels in (16, 64))
STAGED_64 = "fused_conv<64, Staged<64, Bf16>>"
CONV_32, DATA_32 = (f"fused_{name}<32, Float32>" for name in ("conv", "data_gradient"))

FAULTS = [
    Fault(
        "no barrier after the tiles are filled",
        CONV,
        "__syncthreads();\n    product.multiply(tiles)",
        "product.multiply(tiles)",
    ),
    Fault("no barrier before they are filled again", CONV, "__syncthreads();  // nobody may", "// nobody may"),
    Fault(
        "outputs are read before they are written",
        CONV,
        "product.write(shared.outputs);\n  __syncthreads();",
        "product.write(shared.outputs);",
    ),
    Fault("a sum over the tile is read too early", CONV, "= mine;\n  __syncthreads();", "= mine;"),
    Fault("no ReLU", CONV, "rectified ? relu(bn(v, by)) : bn(v, by)", "bn(v, by)"),
    Fault("squares in place of squared deviations", CONV, "quad * 4) - mean;", "quad * 4);"),
    Fault(
        "moments of what was there before the shortcut",
        CONV,
        "if (adds) v = v + added",
        "sum = sum + v;\n      if (adds) v = v + added",
    ),
    Fault("the shortcut takes the wrong pixels", CONV_32, "out.row * stride)", "out.row)"),
    Fault("no ReLU mask", DATA, "{a.x > 0 ? v[i].x : 0,", "{v[i].x,"),
    Fault(
        "the mask is not that of the sum", DATA, "gate ? decode(z[i], t_format) :", "false ? s :", "original"
    ),
    Fault("a sum of the wrong product", DATA, "d * normalise(s, by)", "d * s"),
    Fault("batch norm's backward without the mean", DATA, "s.y - by.of[1].w", "s.y"),
    Fault(
        "the shortcut's gradient is lost",
        DATA,
        "base ? decode(raw.base, format) :",
        "false ? decode(raw.base, format) :",
        "two units a stage",
    ),
    Fault(
        "the shortcut's gradient reaches every pixel",
        DATA,
        "row % stride != 0 ||",
        "",
    ),
    Fault(
        "what is kept has its channels exchanged",
        DATA_32,
        "if (middle) visit(from, v)",
        "if (middle) visit(from, {v.y, v.x, v.z, v.w})",
        "two units a stage",
    ),
    Fault(
        "no barrier after the tiles are filled",
        WEIGHTS,
        "__syncthreads();\n    product.multiply(shared.tiles)",
        "product.multiply(shared.tiles)",
    ),
    Fault("splits overlap", WEIGHTS, "min(split.end, split.first + pixels_of_split)", "split.end"),
    Fault("every split is of the first group", WEIGHTS, "split.group * channels + at.channel", "at.channel"),
    Fault("the gradient's coefficients are of the first group", WEIGHTS, "split.group * out_channels +", "0 +"),
    Fault("the last tile counts as a full one", CONV, "i == tiles - 1 ? rest : full;", "full;"),
    Fault("a sum over lanes is read too early", CONV, "= mine;\n    __syncthreads();", "= mine;"),
    Fault("running statistics of every group", CONV, "if (group != 0) continue;", ""),
    Fault("a biased running variance", CONV, "var * pixels / max(1., pixels - 1)", "var"),
    Fault("the first block to come finishes", CONV, "== gridDim.x - 1", "== 0"),
    Fault("no fence behind the counting", CONV, "__threadfence();\n      arrivals", "arrivals"),
    Fault("nobody counts from zero again", CONV, "arrivals[blockIdx.y] = 0;", ""),
    Fault("a block that is not the last goes on", CONV, "if (last) finish", "finish"),
    Fault("sums of the last group alone", DATA, "all += shared", "all = shared"),
    Fault("coefficients of the first group", DATA, "s.norm[group * channels + c]", "s.norm[c]"),
    Fault("the last split is forgotten", "sum_splits", "(int)sum.splits", "(int)sum.splits - 1"),
    Fault("no ReLU behind the addition", "join", "relu(f + s)", "(f + s)", "original"),
    Fault("a projection behind a ReLU", "join", "rectified != 0", "true", "original with option B"),
    Fault(
        "logits are overwritten while others read them",
        "classify",
        "__syncthreads();  // everybody has read the logits",
        "",
    ),
    *(
        replace(fault, precision="bf16")
        for fault in (
            Fault(
                "no barrier behind the staging",
                STAGED,
                "__syncthreads();\n    multiply_taps",
                "multiply_taps",
                seed=3,
            ),
            Fault(
                "pixels are overwritten while others read them",
                STAGED_64,
                "__syncthreads();  // nobody may overwrite pixels",
                "// nobody may overwrite pixels",
                "bottlenecks",
                seed=3,
            ),
            Fault("the row of zeros is not written", STAGED, "stage.write_zeros();", ""),
            Fault(
                "beyond the end of a row lies the next one",
                STAGED,
                "(unsigned)(own.column + right) < (unsigned)g.width",
                "true",
            ),
            Fault(
                "above an image lies the one before",
                STAGED,
                "(unsigned)(own.row + down) < (unsigned)g.height &&",
                "",
            ),
            Fault("the window of the way forward on the way back", BOTH, "GRADIENT ? -away : away", "away"),
            Fault("a pixel too early", STAGED, "row + (border + down)", "row - 1 + (border + down)"),
            Fault("a batch of loads alone", STAGED_64, "first += BATCH * STRIDE", "first = end"),
            Fault(
                "two words of a weight exchanged", "pack_weights<true>", "high = low + 4 * VALUES", "high = low"
            ),
            Fault(
                "the way back gets the way forward",
                "pack_weights<true>",
                "channels, 1, out_channels)",
                "channels, out_channels, 1)",
            ),
            Fault(
                "no barrier behind the staging",
                BOTH,
                "__syncthreads();\n      weight_sums.add(",
                "weight_sums.add(",
                seed=3,
            ),
            Fault(
                "outputs are written over pixels that others still read",
                BOTH,
                "__syncthreads();\n    }\n    product.write",
                "}\n    product.write",
                seed=3,
            ),
            Fault(
                "pixels behind the last one count",
                BOTH_64,
                "tile.first + row < tile.end ? row",
                "true ? row",
            ),
            Fault("no row of zeros behind the activations", BOTH_64, "activations.write_zeros();", ""),
            Fault(
                "the first half of the pixels twice", BOTH, "a[m][half], halves[half]", "a[m][half], halves[0]"
            ),
            Fault("the last warp's pixels alone", BOTH, "turn == 0 ? v : sum + v", "v"),
            Fault(
                "warps add up at once",
                BOTH,
                "__syncthreads();\n        if (turn != part())",
                "if (turn != part())",
                seed=3,
            ),
            Fault("sums of a split's last tile", BOTH, "before.sum + sum", "sum"),
            Fault(
                "the next tile is staged while others read this one's outputs",
                BOTH,
                "__syncthreads();  // the next tile",
                "// the next tile",
                seed=3,
            ),
            Fault(
                "a split goes on to the end of the group",
                BOTH,
                "min(split.end, split.first + pixels_of_split)",
                "split.end",
            ),
            Fault(
                "the second half of the output channels in the first's place",
                "fused_gradients<32, 64, 2, 1>",
                "CHUNKS + chunk * DEPTH",
                "CHUNKS",
                "bottlenecks",
            ),
            Fault(
                "all blocks have the first input channels",
                "fused_gradients<64, 64, 1, 1>",
                "partial + first_channel * DEPTH",
                "partial + 0 * DEPTH",
                "two bottlenecks a stage",
            ),
        )
    ),
]


class Damaged(EmulatedDevice):
    """The emulated GPU with a fault in one kernel; the others are those that are compiled already."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(EMULATED.compile, EMULATED.library, EMULATED.address)
        module = next(module for module, names in KERNELS.items() if fault.kernel in names)
        parts = read_source(module).split(fault.before)
        assert len(parts) > fault.place + 1, f"the source has changed: {fault.before!r} is not there"
        start, end = parts[: fault.place + 1], parts[fault.place + 1 :]
        code = fault.before.join(start) + fault.after + fault.before.join(end)
        self._functions[fault.kernel] = EmulatedModule(code, [fault.kernel]).get_function(fault.kernel)

    def kernel(self, name):
        return self._functions.get(name) or EMULATED.kernel(name)


@cache
def by_the_textbook(name, dtype, precision, size):
    return textbook(build(name), dtype, precision, size=size)


def compare(name, device, precision):
    size = SIZES[precision]
    step = planned(build(name), device=device, size=size, precision=precision)
    loss, _ = step(0)
    exact_loss, _, exact_gradients, exact = by_the_textbook(name, np.float64, "float32", size)
    _, _, plain_gradients, plain = by_the_textbook(name, np.float32, precision, size)
    assert loss == pytest.approx(exact_loss, rel=1e-5 if precision == "float32" else 3e-3)
    assert_as_good(gradients_of(step), plain_gradients, exact_gradients, "the gradient")
    assert_as_good(step.state(), plain, exact, "the value")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernel}: {fault.what}")
def test_a_planted_fault_is_caught(fault):
    device = Damaged(fault)
    with schedule(fault.seed), pytest.raises((AssertionError, EmulationError)):
        compare(fault.network, device, fault.precision)


@pytest.mark.parametrize(
    ("name", "seed", "precision"),
    sorted({(fault.network, fault.seed, fault.precision) for fault in FAULTS}),
)
def test_the_same_step_without_a_fault_passes(name, seed, precision):
    with schedule(seed):
        compare(name, EMULATED, precision)
