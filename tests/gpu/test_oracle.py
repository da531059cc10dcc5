"""Every kernel against the textbook, on the emulator and on a GPU; and that a wrong one would be noticed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.gpu.conftest import real_cupy
from tests.kernels.tools import require_compiler
from tinyres.layers import LAYERS
from tinyres_gpu.check.correctness import kernels_against_the_textbook
from tinyres_gpu.check.oracle import Case, Disagreement, away_from_kink, judge, numbers
from tinyres_gpu.check.setting import TOY, PhaseError, Skipped
from tinyres_gpu.kernels import PRECISIONS
from tinyres_gpu.kernels.common.sources import KERNELS

UNREACHED = {"pool_gradient<16>", "pool_gradient<32>", "projection_sums<16>"} | {
    f"{name}<{tile}, Staged<{depth}, {arithmetic}>>"
    for name, tile, depth, arithmetic in (
        *product(("fused_conv", "fused_data_gradient"), [32], [16], ("Tf32", "Bf16")),
        *product(["fused_conv"], [16], [32], ["Bf16"]),
        *product(["fused_data_gradient"], [16], [32], ["Bf16"]),
    )
}
"""No network of the catalogue ends with so few channels, or projects to them; none has a convolution from 16
channels to 32, or back, with stride 1."""


@require_compiler
def test_together_the_cases_launch_every_kernel(fake) -> None:
    found = [kernels_against_the_textbook(TOY, precision) for precision in PRECISIONS]
    launched = {name for one in found for name in one["kernels"]}
    assert launched | UNREACHED == {name for names in KERNELS.values() for name in names}
    assert not launched & UNREACHED
    assert all(0 < one["worst_share_of_allowed_error"] <= 1 for one in found)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kernel_on_a_gpu(precision) -> None:
    real_cupy()
    try:
        kernels_against_the_textbook(TOY, precision)
    except Skipped as reason:
        pytest.skip(str(reason))


def test_no_relu_hangs_by_a_thread() -> None:
    x, gamma, beta = numbers(64, 3, 32, 32, offset=1.0), 1 + 0.1 * numbers(3), numbers(3, seed=1)

    def nearest(x):
        arguments = (a.astype(np.float64) for a in (x, gamma, beta))
        return np.abs(LAYERS["bn"].forward(*arguments, groups=2)[0]).min()

    assert nearest(x) < 1e-4 < nearest(away_from_kink(x, gamma, beta, 2))


X = np.linspace(0, 1, 100, dtype=np.float32)


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([X, X + np.float32(1e-5)], "the bits differ from run to run"),
        ([X + np.float32(1e-5)] * 2, "rms error 1.00e-05, allowed"),
        ([X * np.float32(np.nan)] * 2, "rms error nan"),
        ([X[:99]] * 2, r"float32 of shape \(99,\), and \(100,\) was expected"),
        ([X.astype(np.float64)] * 2, "float64 of shape"),
    ],
)
def test_what_is_wrong_is_told(results, words) -> None:
    ours = iter(results)
    with pytest.raises(Disagreement, match=f"a case: .*{words}"):
        judge(Case("a case", lambda: [next(ours)], [X], [X.astype(np.float64)]), times=2)


def test_a_wrong_kernel_fails_its_phase(fake, monkeypatch) -> None:
    def wrong(case):
        raise Disagreement("conv 2x3: rms error 1, allowed 0")

    monkeypatch.setattr("tinyres_gpu.check.correctness.judge", wrong)
    with pytest.raises(PhaseError, match="conv 2x3"):
        kernels_against_the_textbook(TOY, "float32")
