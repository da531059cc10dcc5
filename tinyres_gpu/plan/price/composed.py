"""The launches of the composed step, found by running the step on arrays without numbers.

An array here has the shape of the real one, and a single number in memory stands for all of its numbers.
Kernels are recorded and not run. Every operation that would be a launch of CuPy is recorded as well. The result
is the list of what `KernelStep` launches, because `KernelStep` itself runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.backend import Backend, Job
from tinyres.data import FromFunction
from tinyres.fusion.rewrite import fuse
from tinyres.networks import Network, make_inference
from tinyres.recipes import Recipe
from tinyres_gpu.kernels import Device, layers, merges
from tinyres_gpu.kernels.common.sources import in_order
from tinyres_gpu.kernels.pairs.step import KernelStep
from tinyres_gpu.plan.launches import Argument, Buffer, Launch, Written

KINDS = {
    "conv": "convolutions and data gradients",
    "conv_tensor_core": "convolutions and data gradients",
    "conv_weight_gradient": "weight gradients",
    "conv_weight_gradient_tensor_core": "weight gradients",
    "sum_weight_gradients": "weight gradients",
}
OTHER, CUPYS = "batch norm, ReLU and head", "CuPy's operations"


class Numberless(np.ndarray[Any, Any]):
    """An array that has a shape and takes part in operations, which are recorded."""

    record: Callable[[str, Sequence[Array]], None]

    @classmethod
    def of(cls, shape: Sequence[int], dtype: DTypeLike, record: Callable[[str, Sequence[Array]], None]) -> Self:
        """Return an array of this shape."""
        array = np.broadcast_to(np.zeros((), dtype), tuple(shape)).view(cls)
        array.record = record
        return array

    def __array_finalize__(self, parent: Any) -> None:
        """Give a view the `record` of its parent."""
        if isinstance(parent, Numberless):
            self.record = parent.record

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **_: Any) -> Any:
        """Record an operation that would be a launch of CuPy."""
        arrays = [x for x in inputs if isinstance(x, np.ndarray)]
        if method == "reduce":
            self.record(ufunc.__name__, arrays)
            return 0
        result = (
            out[0] if out else self.of(np.broadcast_shapes(*(x.shape for x in arrays)), self.dtype, self.record)
        )
        self.record(ufunc.__name__, [*arrays, result])
        return result

    def argmax(self, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        """Record the operation; return zeros."""
        self.record("argmax", [self])
        return self.of(self.shape[:1], np.int64, self.record)


class _Library:
    """The functions of CuPy that a composed step calls, for arrays without numbers."""

    def __init__(self, record: Callable[[str, Sequence[Array]], None]) -> None:
        self.record, self.ndarray = record, Numberless

    def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float64) -> Numberless:
        return Numberless.of(shape, dtype, self.record)

    def array(self, value: Array, dtype: DTypeLike | None = None) -> Numberless:
        return self.empty(value.shape, dtype or value.dtype)

    def asarray(self, value: Any, dtype: DTypeLike | None = None) -> Numberless:
        return self.array(np.asarray(value), dtype)

    def ascontiguousarray(self, value: Array, dtype: DTypeLike | None = None) -> Numberless:
        return self.array(value, dtype)


def composed_launches(network: Network, recipe: Recipe, batch_size: int, precision: str) -> list[Launch]:
    """Return what a composed step on our kernels launches.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    batch_size : int
    precision : {"float32", "tf32", "bf16"}

    Returns
    -------
    list of Launch
        Their arguments are only the arrays, with numbers for names.
    """
    found: list[Launch] = []

    def record(
        name: str, arrays: Sequence[Array], kind: str = CUPYS, multiply_adds: int = 0, width: int = 0
    ) -> None:
        number = len(found)
        buffers = [Buffer(f"{number}.{i}", x.shape, x.dtype.name) for i, x in enumerate(arrays)]
        arguments: dict[str, Argument] = {buffer.name: buffer for buffer in buffers}
        if buffers:
            arguments[buffers[-1].name] = Written(buffers[-1])
        found.append(Launch(name, kind, (), arguments, multiply_adds, width))

    class Recorder(Device):
        def launch(
            self,
            name: str,
            blocks: Sequence[int],
            arguments: Mapping[str, Any],
            *,
            block: Sequence[int] = (256,),
        ) -> None:
            arrays = [x for x in in_order(name, arguments).values() if isinstance(x, np.ndarray)]
            base = name.partition("<")[0]
            record(name, arrays, KINDS.get(base, OTHER), *arithmetic(base, arguments))

    library = _Library(record)
    device = Recorder(_no_kernel, lambda: library, lambda x: 0)

    class Step(KernelStep):
        def update_parameters(self, gradients: Mapping[str, Array], rate: float) -> None:
            moved = library.empty((5, network.parameter_count), np.float32)  # w, v read and written; gradients
            record("update", [moved], "update")

    backend = Backend(
        name="recording",
        xp=library,
        layers=layers(device, precision),
        merges=merges(device, precision),
        step=Step,
        inference=make_inference,
        rewrite=fuse,
    )

    @FromFunction
    def batches(t: int) -> tuple[Array, Array]:
        images = library.empty((batch_size, 32, 32, 3), np.float32).transpose(0, 3, 1, 2)
        return images, library.empty((batch_size,), np.int64)

    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in _state_shapes(network).items()}
    Step(backend, Job(network, recipe, batches, state, iterations=1))(0)
    return found


def arithmetic(kernel: str, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Return the multiply-adds of a launch, and the smaller number of channels."""
    if kernel in ("conv", "conv_tensor_core"):
        w = arguments["w"]
        output = arguments["x" if arguments["gradient"] else "y"]  # the output of the convolution
        pixels = output.size // len(w)
        return pixels * w.size, min(w.shape[:2])
    if kernel.startswith("conv_weight_gradient"):
        x, dy, partial = (arguments[name] for name in ("x", "dy", "partial"))
        pixels = dy.size // dy.shape[3]
        return pixels * partial[0].size, min(x.shape[3], dy.shape[3])
    return 0, 0


def _state_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    shapes = dict(network.parameter_shapes)
    shapes |= {"optimizer.velocity." + name: shape for name, shape in shapes.items()}
    for name, channels in network.batch_norms.items():
        shapes |= {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return shapes


def _no_kernel(source: str, names: Sequence[str]) -> Any:
    raise AssertionError("recorded kernels are not compiled")
