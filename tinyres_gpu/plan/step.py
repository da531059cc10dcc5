"""The training step of the `cupy` backend: planned as a whole, and replayed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from tinyres.array import Array
from tinyres.backend import Backend, Job, Step
from tinyres.data import Batches
from tinyres.errors import UserError
from tinyres.training.memory import Need
from tinyres_gpu.ahead import StepAhead
from tinyres_gpu.kernels import CUPY, Device
from tinyres_gpu.kernels.pairs.step import KernelStep
from tinyres_gpu.plan.choices import Choices
from tinyres_gpu.plan.compile import compile_step, why_not
from tinyres_gpu.plan.forward import Pixels
from tinyres_gpu.plan.graph import Replay
from tinyres_gpu.plan.launches import Buffer, Plan
from tinyres_gpu.plan.layout import COLOURS, from_gpu_layout, to_gpu_layout
from tinyres_gpu.plan.program import Program
from tinyres_gpu.plan.schedule import Schedule
from tinyres_gpu.plan.storage import get_storage
from tinyres_gpu.plan.tuning import tune
from tinyres_gpu.plan.tuning.kept import as_json


class Runner(Protocol):
    """An object that runs a program: the program itself, launch by launch, or its graph."""

    def run(self) -> None:
        """Run it."""
        ...


class PlannedStep(StepAhead):
    """Forward, backward and update of one mini-batch. There is a plan for each size of mini-batch that occurs.

    Parameters
    ----------
    backend : Backend
    job : Job
        In float32. If its batches are a `tinyres.data.Batches` on the GPU, the plan makes the mini-batches
        there. Any other callable is called for each mini-batch.
    precision : {"float32", "tf32", "bf16"}
        The format that convolutions round their operands to.
    device : Device
    cuda_stream : cupy.cuda.Stream, optional
        The CUDA stream on which the launches are recorded as graphs and replayed; without it they run one by
        one.

    Attributes
    ----------
    kind : str
        ``planned``.
    why : str
        Empty.
    fold : bool
        Whether a launch that finds partial moments or sums also finishes them; the bits are the same.
    choices : Choices
        Which kernels in which shapes; not to be changed after the first mini-batch.
    tuning : str
        How the choices were found, in words.
    arrays : dict of str to array
        The arrays that outlive a step, in the layout of the GPU; never replaced.
    """

    kind = "planned"
    fold = True

    def __init__(
        self,
        backend: Backend,
        job: Job,
        *,
        precision: str = "float32",
        device: Device = CUPY,
        cuda_stream: Any = None,
    ) -> None:
        assert np.dtype(job.dtype) == np.float32, job.dtype
        self.backend, self.job, self.device, self.cuda_stream = backend, job, device, cuda_stream
        self.precision, self.choices, self.tuning = precision, Choices(), ""
        batches, state = job.batches, job.state
        self.on_gpu = batches if isinstance(batches, Batches) and batches.xp is device.xp else None
        self.shapes = {name: value.shape for name, value in state.items()}
        self.arrays: dict[str, Array] = {}
        self.arena: Array | None = None
        self.inference: Any = None  # with a copy of the present parameters
        self.runners: dict[tuple[int, ...], tuple[Program, Runner]] = {}
        self.schedule = Schedule(job.recipe, job.iterations, self.on_gpu, self._upload)
        if cuda_stream:
            self.reader = device.xp.cuda.Stream(
                non_blocking=True
            )  # reads results while `cuda_stream` continues to work
            self.finished: dict[int, Any] = {}  # row of the tables -> event
            # These CUDA streams do not wait for work that others have begun, such as the copy of the data set.
            device.xp.cuda.runtime.deviceSynchronize()
        size = 3 * sum(value.nbytes for value in state.values())
        need = Need(f"the parameters of ResNet-{job.network.depth}", size)
        with self._streaming(), backend.within_memory(lambda: need):
            for name, value in state.items():
                self.arrays[name] = device.empty(*to_gpu_layout(value).shape)
            self._fill(state)

    def launch(self, t: int) -> None:
        """Start iteration t and do not wait for it.

        Raises
        ------
        UserError
            If the card's memory is too small for the mini-batch; the message says what would fit.
        """
        self.inference = None
        with self._streaming():
            if self.on_gpu is not None:
                program, runner = self._runner(self.on_gpu.size(t))
            else:
                images, labels = self.job.batches(t)
                n, _, *size = images.shape
                program, runner = self._runner(n, *size)
                xp = self.device.xp
                rows = program.arrays["images"]
                rows[...] = 0  # the fourth plane
                rows[..., :COLOURS] = xp.asarray(images, dtype=np.float32).transpose(0, 2, 3, 1)
                program.arrays["labels"][...] = xp.asarray(labels, dtype=np.int32)
            self.schedule.prepare(t)
            runner.run()
            if self.cuda_stream:
                self.finished[self.schedule.row(t)] = self.cuda_stream.record()
        self.schedule.look_ahead()

    def result(self, t: int) -> tuple[float, int]:
        """Wait for iteration t, one of the last, and return its summed loss and number of errors.

        It does not wait for later iterations.

        Raises
        ------
        KeyError
            If iteration t was not among the last 128.
        """
        row = self.schedule.row(t)
        if self.cuda_stream:
            self.reader.wait_event(self.finished[row])
        with self.reader if self.cuda_stream else nullcontext():
            loss, errors = self.backend.to_host(self.arrays["schedule.results"][row])
        return float(loss), int(errors)

    def infer(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W) at test time, computed by pairs."""
        if self.inference is None:
            with self._streaming():
                state = {name: from_gpu_layout(self.arrays[name], shape) for name, shape in self.shapes.items()}
            if self.cuda_stream:
                self.cuda_stream.synchronize()  # the inference runs on the caller's CUDA stream
            self.inference = self.backend.make_inference(self.job.network, state, eps=self.job.recipe.eps)
        logits: Array = self.inference(images)
        return logits

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        with self._streaming():
            return {
                name: from_gpu_layout(self.backend.to_host(self.arrays[name]), shape)
                for name, shape in self.shapes.items()
            }

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state in, in place."""
        self.inference = None
        with self._streaming():
            self._fill(state)

    def close(self) -> None:
        """Do nothing: the step holds only memory."""

    def _fill(self, state: Mapping[str, Array]) -> None:
        for name in self.shapes:
            self._upload(name, to_gpu_layout(np.asarray(state[name])))

    def _upload(self, name: str, values: Array) -> None:
        self.arrays[name][...] = self.device.xp.asarray(values)

    def _streaming(self) -> AbstractContextManager[Any]:
        return self.cuda_stream or nullcontext()

    def _runner(self, n: int, *size: int) -> tuple[Program, Runner]:
        """Return the program for mini-batches of n images, and its runner; both are kept for each size."""
        key = n, *size
        if key not in self.runners:
            plan = self.plan(n, size)
            with self.backend.within_memory(lambda: self._need(plan)):
                program = self._program(plan)
            self.runners[key] = program, Replay(program, self.cuda_stream) if self.cuda_stream else program
        return self.runners[key]

    def choose(self, n: int, size: Sequence[int] = (), recorded: Mapping[str, Any] | None = None) -> None:
        """Choose the kernels for mini-batches of n images on this card, before the first of them.

        A mini-batch of another size takes the defaults.

        Parameters
        ----------
        n, size
            As in `plan`.
        recorded : mapping, optional
            The value of `kernels` when the run stopped.
        """

        def array_of(buffer: Buffer) -> Array:
            array = self.arrays.get(buffer.name)
            return self._permanent(buffer) if array is None else array

        scratch = tune.Scratch(self.device, array_of)
        with self._streaming():
            self.choices, self.tuning = tune.choose(
                lambda choices: self.plan(n, size, choices), scratch, self.device.xp, recorded, _warn
            )
        del scratch
        self.device.xp.get_default_memory_pool().free_all_blocks()

    @property
    def kernels(self) -> dict[str, Any]:
        """The choices, in the form that JSON has: with the same choices, a step computes the same bits."""
        run = {
            str(decision.question): decision.choice
            for program, _ in self.runners.values()
            for launch in program.plan.launches
            for decision in launch.decisions
        }
        return as_json({**self.choices.chosen, **run})

    def plan(self, n: int, size: Sequence[int] = (), choices: Choices | None = None) -> Plan:
        """Return the plan for mini-batches of n images.

        Parameters
        ----------
        n : int
        size : (int, int)
            Height and width of the images, if the host brings them.
        choices : Choices, optional
            Choices to use in place of the step's own.
        """
        pixels, largest = None, None
        if self.on_gpu is not None:
            images, _, *size = self.on_gpu.images.shape
            mean_per_pixel = self.on_gpu.normalisation.mean.size > COLOURS
            pixels = Pixels(
                images, size[0], size[1], mean_per_pixel, self.job.recipe.pad == "before-normalising"
            )
            largest = self.on_gpu.batch_size
        return compile_step(
            *(self.job.network, self.job.recipe, n),
            precision=self.precision,
            stream_format=self.job.stream_format,
            size=(size[0], size[1]),
            pixels=pixels,
            largest_batch=largest,
            fold=self.fold,
            choices=choices or self.choices,
        )

    def _need(self, plan: Plan) -> Need:
        an_image = -(-plan.placement.size // plan.batch_size)
        name = f"a training step of ResNet-{self.job.network.depth}"
        return Need(name, 0, an_image, batch_size=plan.batch_size)

    def _program(self, plan: Plan) -> Program:
        """Bind a plan to memory: to the arrays that exist, and to new ones for all else that it needs."""
        for buffer in plan.permanent:
            if buffer.name not in self.arrays:
                self.arrays[buffer.name] = self._permanent(buffer)
        if self.arena is None or self.arena.nbytes < plan.placement.size:
            self.arena = self.device.empty(plan.placement.size // 4)  # programs with the old arena keep it
        return Program(plan, self.device, self.arena, self.arrays)

    def _permanent(self, buffer: Buffer) -> Array:
        """Return the array of a permanent buffer: the data set's own, or zeros."""
        of = self.on_gpu
        if of is None or not buffer.name.startswith("data."):
            zeros: Array = self.device.xp.zeros(buffer.shape, buffer.dtype)
            return zeros
        found: Array = {
            "data.images": of.images,
            "data.labels": of.labels,
            "data.mean": of.normalisation.mean,
            "data.std": of.normalisation.std,
        }[buffer.name]
        return found


def _warn(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def make_step(backend: Backend, job: Job, *, precision: str = "float32") -> Step:
    """Return a training step on the GPU that CuPy uses: planned where a plan can be made, else composed.

    Parameters
    ----------
    backend : Backend
    job : Job
        With `Job.kernels`, a planned step makes the same choices as the earlier step that reported them, where
        these kernels still exist. Otherwise it chooses by measurement.
    precision : {"float32", "tf32", "bf16"}
        The format that convolutions round their operands to; the backend's pairs round to it as well.

    Returns
    -------
    PlannedStep or KernelStep
        Its attributes `kind` and `why` say which of the two it is, and why.

    Raises
    ------
    UserError
        If only a plan could store the residual stream as asked, and there is no plan for the network.
    """
    batches, stored = job.batches, job.stream_format
    get_storage(precision, stored)
    images = batches.images if isinstance(batches, Batches) else batches(0)[0]
    if why := why_not(job.network, images.shape[2:]):
        if stored != "float32":
            raise UserError(f"{why}, and only a plan stores the stream in {stored}: use --stream float32.")
        return KernelStep(backend, job, why)
    cuda_stream = backend.xp.cuda.Stream(non_blocking=True)
    planned = PlannedStep(backend, job, precision=precision, cuda_stream=cuda_stream)
    planned.choose(batches.size(0), images.shape[2:], job.kernels)
    return planned
