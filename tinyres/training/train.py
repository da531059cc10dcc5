"""A training run and its folder: started, stopped at any moment, resumed, finished.

    config.json                      written first: what is computed, and how
    metrics.csv                      loss and error by iteration, without clock times: equal runs, equal files
    timing.csv                       the clock times
    checkpoint-00000400.safetensors  the newest two
    curves.png                       training loss and test error so far
    confusion.png, mistakes.png      what the trained network takes for what
    result.json                      comes last: where it lies, the run is over

A run that is killed and resumed ends with the bits of one that was never stopped, because a step is a pure
function of the state and of t, and all that outlives a step is in the checkpoint: the state, and the loss and
errors summed since the last line of metrics.csv. A line is on the disk before the checkpoint that follows it,
so that cutting metrics.csv back to a checkpoint never leaves a gap.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

import tinyres
from tinyres.array import Array
from tinyres.backend import Backend, Job, Step, get_backend
from tinyres.data import Batches, Dataset, load_dataset
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.networks import Network
from tinyres.recipes import learning_rate
from tinyres.system.files import append_row, remove_file, temporary_files, write_file
from tinyres.system.locks import owned
from tinyres.system.progress import is_open, progress, say, warn
from tinyres.training.checkpoint import (
    check_state,
    checkpoint_paths,
    load_newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from tinyres.training.config import Config, check_choices, differences
from tinyres.training.cost import multiply_adds
from tinyres.training.evaluate import Evaluation, NotFinite, evaluate, recompute_statistics, score
from tinyres.training.memory import Need, evaluation_need, training_need
from tinyres.training.pictures import draw_confusion, draw_mistakes
from tinyres.training.report import describe, draw_curves
from tinyres.training.run_folder import check_folder, cut_table, read_table

METRICS = ("iteration", "epoch", "learning_rate", "training_loss", "training_error", "test_loss", "test_error")
TIMING = ("iteration", "seconds", "step_seconds")
ROWS = 10
"""Lines of metrics.csv for each look at the test set: the training loss costs nothing."""


@dataclass
class Sums:
    """Training loss and errors since the last line of metrics.csv."""

    loss: float = 0.0
    errors: int = 0
    images: int = 0

    @property
    def means(self) -> tuple[float, float]:
        """Loss of an image, and error in per cent."""
        return self.loss / self.images, 100 * self.errors / self.images


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    data: tuple[Dataset, Dataset] | None = None,
) -> dict[str, Any]:
    """Train a network and leave its folder.

    Parameters
    ----------
    config : Config
        What to train, and how.
    out : path
        The run's folder, created if need be; one living run can hold it.
    resume : bool
        Go on with the run that is there, if there is one.
    quiet : bool
        Print nothing but warnings.
    data : (Dataset, Dataset), optional
        Training and test set in place of those that `config` names.

    Returns
    -------
    dict
        The content of ``result.json``. Errors are in per cent; ``seconds`` counts training and looking at the
        test set, not the start-up; ``images_per_second`` counts the steps alone.

    Raises
    ------
    UserError
        If something in `config` or in the folder is impossible, the disk is full, or a number stops being
        finite. The newest good checkpoint stays.
    KeyboardInterrupt
        On Ctrl-C, after the step was finished and saved. A second Ctrl-C does not wait.
    """
    out = Path(out)
    if config.stream != "float32" and config.precision != "bf16":
        raise UserError(f"a stream of {config.stream} needs --precision bf16, not {config.precision}.")
    backend = get_backend(config.backend, config.precision)
    config = replace(config.resolved(), pairs=backend.pairs, device=backend.device)
    _check_run(config, out, resume)  # again when the folder is ours; here it comes before the data
    if not (out / "config.json").exists():  # a run that was begun before goes on with what it has
        check_choices(config)
    training, test = data or load_dataset(config.dataset, config.data_dir, validation=config.validation)
    network = config.network(len(training.classes))
    with backend.within_memory(lambda: Need("the data set", training.images.nbytes + training.labels.nbytes)):
        batches = Batches(
            training,
            config.recipe,
            seed=config.seed,
            batch_size=config.batch_size,
            dtype=config.dtype,
            xp=backend.xp,
        )
    run = _Run(config, out, quiet, backend, network, training, test, batches)
    run.say(describe(config, network, len(training.labels), len(test.labels)))
    run.say(f"{'folder':9}{out}")
    with owned(out):
        _check_run(config, out, resume)
        run.record_config()
        start, state, sums, kernels = run.restore()
        job = Job(
            network,
            config.recipe,
            batches,
            state,
            iterations=config.iterations,
            dtype=config.dtype,
            seed=config.seed,
            replicas=config.replicas,
            kernels=kernels,
            stream_format=config.stream,
        )
        step = backend.make_step(job)
        try:
            why = f" ({step.why})" if step.why else ""
            run.say(f"{'step':9}{step.kind}{why}, in {step.replicas} process{'es' * (step.replicas > 1)}")
            if step.tuning:
                run.say(f"{'kernels':9}{step.tuning}")
            run.take_steps(step, start, sums)
        finally:
            step.close()
        return run.finish(step.kind)


@dataclass(frozen=True)
class _Run:
    """What stays the same during a run, and the things a run does, in their order."""

    config: Config
    out: Path
    quiet: bool
    backend: Backend
    network: Network
    training: Dataset
    test: Dataset
    batches: Batches

    @property
    def evaluated_on(self) -> str:
        return "validation" if self.config.validation else "test"

    def say(self, text: str) -> None:
        if not self.quiet:
            say(text)

    def record_config(self) -> None:
        """Write config.json; say so if the run was computed another way up to now."""
        path = self.out / "config.json"
        if path.exists() and (changed := differences(Config.read(path), self.config, "how")):
            warn(f"going on another way than before, which may change the last bits: {changed}")
        write_file(path, self.config.to_json().encode())

    def restore(self) -> tuple[int, dict[str, Array], Sums, dict[str, Any]]:
        """Return where to go on: the newest good checkpoint, else the beginning. Cut the tables back to it."""
        config, start, sums, kernels = self.config, 0, Sums(), {}
        state = initialise(
            self.network, config.recipe, config.seed, gate_bias=config.gate_bias, dtype=config.dtype
        )
        found = load_newest_checkpoint(self.out, warn=warn)
        if found:
            path, (start, saved, facts) = found
            check_state(saved, state, path)
            if facts["what"] != config.part("what"):
                raise UserError(f"{path} is from another run than the config.json beside it.")
            state, sums, kernels = saved, Sums(**facts["sums"]), facts.get("kernels", {})
            prune_checkpoints(path)
            self.say(f"{'resumed':9}after {start:,} iterations")
        for leftover in temporary_files(self.out):
            remove_file(leftover)
        cut_table(self.out / "metrics.csv", METRICS, start)
        cut_table(self.out / "timing.csv", TIMING, start)
        return start, state, sums, kernels

    def take_steps(self, step: Step, start: int, sums: Sums) -> None:
        """Take the steps from `start` on; write rows, curves and checkpoints when they are due."""
        config, batches = self.config, self.batches
        times = read_table(self.out / "timing.csv")
        before, step_seconds = (times[-1]["seconds"] or 0, times[-1]["step_seconds"] or 0) if times else (0, 0)
        begun = time.perf_counter()
        layout = "{n_fmt}/{total_fmt} |{bar}| {elapsed} gone, {remaining} left{postfix}"
        silent = self.quiet or start == config.iterations
        bar = progress(total=config.iterations, initial=start, quiet=silent, bar_format=layout)
        with bar, _deferred_interrupt() as interrupted:

            def wants_state(t: int) -> bool:
                """Whether something is to be done with the state that iteration t leaves."""
                due = any((t + 1) % every == 0 for every in (config.eval_every, config.checkpoint_every))
                return due or bool(interrupted)

            step_begun = time.perf_counter()
            for t, loss, errors, still in step.outcomes(start, config.iterations, wants_state):
                seconds = time.perf_counter() - step_begun
                rate = learning_rate(config.recipe, t, config.iterations)
                if not isfinite(loss):
                    raise self.diverged(f"the loss became {loss}", t, rate)
                images = batches.size(t)
                step_seconds += seconds
                sums = Sums(sums.loss + loss, sums.errors + errors, sums.images + images)
                mean_loss, mean_error = sums.means
                message = f"loss {mean_loss:.3f}, error {mean_error:.1f} %"
                bar.set_postfix_str(f"{message}, {images / seconds:,.0f} images/s", refresh=False)
                bar.update()

                done = t + 1
                over = done == config.iterations
                look = over or done % config.eval_every == 0
                if look or row_is_due(done, config.eval_every):
                    epoch = round(done / batches.iterations_per_epoch, 4)
                    try:
                        found = self.evaluate(step) if look else None
                    except NotFinite as error:
                        what = f"the look at the {self.evaluated_on} set failed ({str(error).rstrip('.')})"
                        raise self.diverged(what, t, rate) from error
                    tested = (found.loss, found.error) if found else (None, None)
                    append_row(self.out / "metrics.csv", [done, epoch, rate, mean_loss, mean_error, *tested])
                    clock = before + time.perf_counter() - begun
                    append_row(self.out / "timing.csv", [done, round(clock, 3), round(step_seconds, 3)])
                    sums = Sums()
                    if found:
                        self.draw()
                        if over:
                            self.draw_mistakes(found)
                        error = f"{self.evaluated_on} error {found.error:.2f} %"
                        self.say(f"iteration {done:,}: training {message}; {error}")
                if over or (interrupted and still) or done % config.checkpoint_every == 0:
                    state = step.state()
                    if bad := [name for name, array in state.items() if not np.isfinite(array).all()]:
                        raise self.diverged(f"{bad[0]} stopped being finite numbers", t, rate)
                    facts = {"what": config.part("what"), "sums": asdict(sums), "kernels": step.kernels}
                    save_checkpoint(self.out, done, state, facts)
                if interrupted and still and not over:
                    raise KeyboardInterrupt(f"saved after {done:,} iterations in {self.out}")
                step_begun = time.perf_counter()

    def evaluate(self, step: Step) -> Evaluation:
        """Look at the test set, with the step's own processes."""
        recipe, size = self.config.recipe, self.config.batch_size
        common = self.backend, self.network
        normalise, itemsize = self.batches.normalise, self.config.dtype.itemsize
        need = training_need if recipe.recompute_statistics else evaluation_need
        with self.backend.within_memory(lambda: need(self.network, size, itemsize)):
            if not recipe.recompute_statistics:
                return score(self.backend, step.infer, self.test, normalise, batch_size=size)
            state = recompute_statistics(
                *common, step.state(), self.training, normalise, recipe, batch_size=size
            )
            return evaluate(*common, state, self.test, normalise, batch_size=size, eps=recipe.eps)

    def draw(self) -> None:
        """Draw the curves so far."""
        config = self.config
        title = f"ResNet-{config.depth}, {config.unit}, {config.dataset}, recipe {config.recipe.name}"
        rows = read_table(self.out / "metrics.csv")
        write_file(self.out / "curves.png", draw_curves({title: [rows]}, self.evaluated_on))

    def draw_mistakes(self, found: Evaluation) -> None:
        """Draw what was confused with what, and the most confident mistakes."""
        images, labels, classes = self.test.images, self.test.labels, self.test.classes
        write_file(self.out / "confusion.png", draw_confusion(found.predictions, labels, classes))
        write_file(self.out / "mistakes.png", draw_mistakes(images, found.logits, labels, classes))

    def diverged(self, what: str, t: int, rate: float) -> UserError:
        """Say when and where the numbers blew up, and what is left."""
        good = checkpoint_paths(self.out)
        kept = f"the last good checkpoint is {good[0]}" if good else "there was no checkpoint yet"
        return UserError(f"{what} in iteration {t} at learning rate {rate:g}; {kept}.")

    def finish(self, step: str) -> dict[str, Any]:
        """Write result.json, from what the folder holds and the kind of step that was taken."""
        config, network = self.config, self.network
        rows = [row for row in read_table(self.out / "metrics.csv") if row["test_error"] is not None]
        times = read_table(self.out / "timing.csv")
        if not all(isfinite(row["test_loss"] or 0) for row in rows):
            raise UserError(
                f"{self.out / 'metrics.csv'} has a look at the {self.evaluated_on} set whose loss is not a finite "
                "number: such a run has no error; start again with a smaller learning rate."
            )
        if not times or not rows or rows[-1]["iteration"] != config.iterations:
            raise UserError(
                f"{self.out} has its last checkpoint, but metrics.csv or timing.csv lost their end."
            )
        seconds, step_seconds = times[-1]["seconds"], times[-1]["step_seconds"] or 1e-3
        result: dict[str, Any] = {
            "test_error": rows[-1]["test_error"],
            "test_loss": rows[-1]["test_loss"],
            "best_test_error": min(row["test_error"] or 0 for row in rows),
            "evaluated_on": self.evaluated_on,
            "iterations": config.iterations,
            "parameters": network.parameter_count,
            "multiply_adds": multiply_adds(network),
            "seconds": seconds,
            "images_per_second": round(sum(map(self.batches.size, range(config.iterations))) / step_seconds, 1),
            **config.part("what"),
            "backend": config.backend,
            "precision": config.precision,
            "step": step,
            "pairs": config.pairs,
            "device": config.device,
            "replicas": config.replicas,
            "blas": config.blas,
            "versions": {
                "tinyres": tinyres.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        self.draw()
        write_file(self.out / "result.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
        self.say(
            f"{self.evaluated_on} error {result['test_error']:.2f} % after {config.iterations:,} iterations "
            f"(best {result['best_test_error']:.2f} %), {seconds:,.0f} s, "
            f"{result['images_per_second']:,} images/s; {self.out / 'curves.png'}"
        )
        return result


def row_is_due(done: int, eval_every: int) -> bool:
    """Return whether metrics.csv gets a line after so many iterations, at intervals as equal as they can be.

    Examples
    --------
    >>> [done for done in range(1, 51) if row_is_due(done, 25)]
    [3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40, 43, 45, 48, 50]
    """
    return done * ROWS // eval_every > (done - 1) * ROWS // eval_every


def _check_run(config: Config, out: Path, resume: bool) -> None:
    """Refuse a folder that this run cannot live in."""
    check_folder(out, resume)
    recorded = out / "config.json"
    if recorded.exists() and (changed := differences(Config.read(recorded), config, "what")):
        raise UserError(f"{out} holds another run, which differs in {changed}.")


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Collect the first Ctrl-C instead of raising it; a second one stops at once."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are handled only there
        yield pressed
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)
        if is_open(sys.stderr):  # else 2 may be the number of any file
            text = b"\nfinishing this step, then saving; Ctrl-C again stops at once\n"
            os.write(2, text)  # print is not re-entrant

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)
