"""The phases of `python -m tinyres_gpu.check`: first those that check, then those that measure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tinyres_gpu.check.correctness import against_numpy, gpu_tests, gradients, kernels_against_the_textbook
from tinyres_gpu.check.numerics import first_iterations
from tinyres_gpu.check.runs import paper_recipe, users_command
from tinyres_gpu.check.setting import RUNGS, Size
from tinyres_gpu.check.speed import ceilings, kernel_times, products, step_time, torch_step_time
from tinyres_gpu.kernels import PRECISIONS

Phase = Callable[[Size], dict[str, Any]]

DEPTHS = (20, 110, 164, 1001)
PHASES: dict[str, Phase] = {
    "ceilings": ceilings,
    "ceilings TF32": products,
    "tests": gpu_tests,
    "gradients": gradients,
    **{
        f"kernels against the textbook, {precision}": partial(kernels_against_the_textbook, precision=precision)
        for precision in PRECISIONS
    },
    **{
        f"20 iterations against NumPy, {rung}": partial(against_numpy, rung=rung)
        for rung in ("textbook in float64", *RUNGS)
    },
    "the first iterations against float32": first_iterations,
    "ResNet-164, the user's command": partial(users_command, depth=164),
    **{
        f"ResNet-20, 5000 iterations, {precision}": partial(users_command, depth=20, precision=precision)
        for precision in PRECISIONS
    },
    **{
        f"step of ResNet-{depth}, {rung}": partial(step_time, depth=depth, rung=rung)
        for depth in DEPTHS
        for rung in RUNGS
    },
    **{
        f"kernels of ResNet-{depth}, {rung}": partial(kernel_times, depth=depth, rung=rung)
        for depth in (110, 164)
        for rung in RUNGS
        if rung != "textbook"
    },
    **{
        f"PyTorch ResNet-{depth} {mode} {precision}": partial(
            torch_step_time, depth=depth, mode=mode, precision=precision
        )
        for depth in DEPTHS
        for mode in ("channels-last", "compiled")
        for precision in PRECISIONS
    },
    **{f"ResNet-{depth}, the paper's recipe": partial(paper_recipe, depth=depth) for depth in (110, 164)},
}
"""All phases by name, in order: the checks of results, the measurements of speed, the runs that take hours."""

_TF32 = ("ceilings TF32", *(name for name in PHASES if name.startswith("kernels of") and name.endswith("tf32")))
ENVIRONMENT = {name: {"CUPY_TF32": "1"} for name in _TF32}
"""Additional environment variables of the phases that measure products in TF32; CuPy reads them only once."""
