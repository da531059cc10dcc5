"""The training step of the `numpy` backend: plans, replicas, and the update.

The mini-batch is cut into contiguous shares, one for each replica. A share is one or more groups of batch norm.
With more cores than groups it is a part of a group; the replicas of a group then exchange the sums that batch
norm needs (meeting.py). Mini-batch t is a pure function of t, so each replica draws the images of its share
itself. It runs its groups one after the other and leaves the sum of their gradients in shared memory. The
parent adds the gradients of all replicas in order and updates the parameters, also in shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tinyres.array import Array
from tinyres.backend import Backend, Job, Step
from tinyres.chain import Moments
from tinyres.cpu.compile import PlanError, check
from tinyres.cpu.inference import PlannedInference
from tinyres.cpu.meeting import Board, Team
from tinyres.cpu.memory import empty
from tinyres.cpu.plan import Plan
from tinyres.cpu.replicas import Replicas, interrupts_deferred
from tinyres.errors import UserError
from tinyres.optim import update
from tinyres.recipes import learning_rate
from tinyres.step import ComposedStep, update_running_statistics
from tinyres.system.platform import can_fork, usable_cores

SMALLEST_SHARE = 16
"""The fewest images of a group that a replica takes: with fewer, matrix products are too thin to be fast."""


class FastStep(Step):
    """Forward, backward and update of one mini-batch, by compiled plans on several cores.

    Parameters
    ----------
    job : Job
        Each replica draws only its own images from `Job.batches`. At most `Job.replicas` processes share the
        mini-batch; by default as many as there are cores (`how_many`).
    """

    kind = "planned"

    def __init__(self, job: Job) -> None:
        self.job, self.dtype = job, np.dtype(job.dtype)
        self.plans: dict[tuple[Any, ...], Plan] = {}

        size = job.batches.size(0)
        self.replicas = how_many(job.replicas, size, job.recipe.groups(size))
        if job.replicas != 1 and not can_fork():
            self.why = "this system cannot fork workers"
        shared = self.replicas > 1
        shapes = {name: value.shape for name, value in job.state.items()}
        self.buffers = _arrays(shapes, self.dtype, shared)
        self.load(job.state)
        trained = job.network.parameter_shapes
        self.gradients = [_arrays(trained, self.dtype, shared) for _ in range(self.replicas)]
        self.inference = PlannedInference(job.network, job.recipe.eps)
        self._processes = Replicas(self.replicas)
        widest = max(job.network.batch_norms.values())
        self.board = Board(self.replicas, widest, self._processes.watch) if shared else None
        self._processes.start(self._answer)

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        recipe = self.job.recipe
        with interrupts_deferred():
            results = self._run([t] * self.replicas)
            rate = learning_rate(recipe, t, self.job.iterations)
            for name, gradient in self.gradients[0].items():
                for others in self.gradients[1:]:
                    gradient += others[name]
                velocity = self.buffers["optimizer.velocity." + name]
                update(name, self.buffers[name], velocity, gradient, rate, recipe)
            _, _, moments = results[0]  # of group 0
            for name, batch in moments.items():
                update_running_statistics(self.buffers, name, batch, recipe.running_momentum)
        return sum(loss for loss, _, _ in results), sum(errors for _, errors, _ in results)

    def infer(self, images: Array) -> Array:
        """Return the logits (N, classes) of normalised images (N, 3, H, W) at test time, by its state."""
        with interrupts_deferred():
            return np.concatenate(self._run(np.array_split(images, self.replicas)))

    def state(self) -> dict[str, Array]:
        """Return a copy of the training state: NumPy arrays, C-contiguous."""
        return {name: value.copy() for name, value in self.buffers.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Copy a training state into the arrays of this step."""
        for name, buffer in self.buffers.items():
            buffer[...] = state[name]

    def close(self) -> None:
        """End the worker processes."""
        self._processes.close()

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        """Let every replica answer its request; a worker that was killed is no fault of ours."""
        try:
            return self._processes.run(requests)
        except RuntimeError as error:
            if " is gone (exit code -" not in str(error):  # it failed by itself, or this step was closed
                raise
            raise UserError(
                f"{str(error).rstrip('.')}, as where the system has run out of memory: what was saved is kept; "
                "go on with fewer --replicas."
            ) from error

    def _answer(self, replica: int, request: int | Array) -> Any:
        """Run a replica's share of iteration t, or compute the logits of its images."""
        if isinstance(request, int):
            return self._run_share(replica, request)
        return self.inference(self.buffers, request)

    def _run_share(self, replica: int, t: int) -> tuple[float, int, dict[str, Moments]]:
        """Run a replica's groups; leave the gradients' sum in shared memory.

        Returns
        -------
        loss_sum : float
        errors : int
        moments : dict of str to Moments
            The moments of the mini-batch's first group, which replica 0 runs; empty for other replicas.
        """
        recipe = self.job.recipe
        total = self.job.batches.size(t)
        groups = recipe.groups(total)
        images_of, members = share(total, groups, self.replicas, replica)
        gradients = self.gradients[replica]
        for gradient in gradients.values():
            gradient[...] = 0
        loss, errors = 0.0, 0
        moments: dict[str, Moments] = {}
        if self.board:
            self.board.begin()
        try:
            count = images_of.stop - images_of.start
            if count:
                images, labels = self.job.batches(t, images_of)
            n = total // groups // len(members)  # of each group
            for start in range(0, count, n):
                own = slice(start, start + n)
                plan = self.plan(images[own].shape, members, replica)
                group_loss, group_errors, group_gradients, group_moments = plan.run(
                    self.buffers, images[own], labels[own], 1 / total, recipe.eps
                )
                loss, errors = loss + group_loss, errors + group_errors
                for name, gradient in group_gradients.items():
                    gradients[name] += gradient
                if replica == start == 0:
                    moments = group_moments
        except BaseException:
            if self.board:
                self.board.abandon()
            raise
        return loss, errors, moments

    def plan(self, shape: tuple[int, ...], members: range, replica: int) -> Plan:
        """Return a replica's plan for images of this shape, (n, 3, H, W), of a group that `members` share."""
        key = shape, members
        if key not in self.plans:
            n, _, height, width = shape
            team = Team(self.board, members, replica)
            self.plans[key] = Plan(self.job.network, n, height, width, self.dtype, team=team)
        return self.plans[key]


def how_many(wanted: int | None, size: int, groups: int) -> int:
    """Return the number of replicas: at most `wanted`, or the number of cores if that is None.

    The result divides the number of groups, so that each replica takes whole groups; or it is a multiple of
    that number, and each replica takes an equal part of a group, not smaller than `SMALLEST_SHARE`.

    Parameters
    ----------
    wanted : int or None
    size, groups : int
        The number of images and of groups in the mini-batch.

    Examples
    --------
    >>> how_many(3, 256, 4), how_many(2, 128, 2), how_many(7, 128, 2), how_many(2, 100, 1), how_many(3, 100, 1)
    (2, 2, 4, 2, 2)
    """
    if wanted is None:
        wanted = usable_cores()
    if not can_fork():
        wanted = 1

    def fits(replicas: int) -> bool:
        equal = replicas % groups == 0 and size % replicas == 0
        return groups % replicas == 0 or (equal and size // replicas >= SMALLEST_SHARE)

    return max(replicas for replicas in range(1, max(1, wanted) + 1) if fits(replicas))


def share(size: int, groups: int, replicas: int, replica: int) -> tuple[slice, range]:
    """Return the images of a mini-batch that a replica takes, and the replicas that share its group.

    Only in a mini-batch of full size are all shares equal. In a short one some replicas may have less, or none.

    Examples
    --------
    >>> [share(128, 2, 4, replica) for replica in (0, 3)]
    [(slice(0, 32, None), range(0, 2)), (slice(96, 128, None), range(2, 4))]
    >>> [share(192, 3, 2, replica)[0] for replica in (0, 1)]
    [slice(0, 128, None), slice(128, 192, None)]
    >>> [share(9, 1, 2, replica)[0] for replica in (0, 1)]
    [slice(0, 9, None), slice(9, 9, None)]
    """
    n = size // groups
    parts = max(k for k in range(1, max(1, replicas // groups) + 1) if n % k == 0)
    if parts > 1:
        team = replica // parts
        first = min(replica, groups * parts) * (n // parts)
        last = min(replica + 1, groups * parts) * (n // parts)
        return slice(first, last), range(team * parts, (team + 1) * parts)
    # rounded up, so that the first replicas take the groups where there are fewer groups than replicas
    first, last = (-(-groups * r // replicas) * n for r in (replica, replica + 1))
    return slice(first, last), range(replica, replica + 1)


def _arrays(
    shapes: Mapping[str, tuple[int, ...]] | Iterable[tuple[str, tuple[int, ...]]],
    dtype: DTypeLike,
    shared: bool,
) -> dict[str, Array]:
    """Return arrays by name, one after the other in a single piece of memory."""
    shapes = dict(shapes)
    sizes = [math.prod(shape) for shape in shapes.values()]
    memory = empty((sum(sizes),), dtype, shared=shared)
    parts = np.split(memory, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def make_step(backend: Backend, job: Job) -> Step:
    """Return a training step: planned where there is a plan for the network, else composed.

    Parameters
    ----------
    backend : Backend
    job : Job
        Mini-batch 0 of `Job.batches` is drawn, to see the size of the images.

    Returns
    -------
    Step
        Its attributes `kind` and `why` say which of the two and why; `replicas` is its number of processes.
    """
    images, _ = job.batches(0)
    try:
        check(job.network, *images.shape[2:])
    except PlanError as error:
        return ComposedStep(backend, job, why=str(error))
    return FastStep(job)
