"""A training run and its folder: started, stopped at any moment, resumed, finished.

    config.json                      written first: what is computed, and how
    metrics.csv                      loss and error by iteration; no clock times: equal runs give equal files
    timing.csv                       the clock times of the same lines
    checkpoint-00000400.safetensors  the newest two
    curves.png                       training loss and test error so far
    confusion.png, mistakes.png      which classes the trained network confuses
    result.json                      written last: if it exists, the run is over

What the numbers are, once and for all:

    metrics.csv  a line about ROWS times between two looks at the test set, and at each look
        training_loss, training_error   means over the images of the steps since the line before
        test_loss, test_error           of a look; empty where there was none
    timing.csv   a line for each of metrics.csv and each checkpoint, sums since the run began; of two for
                 one iteration (a look was broken off, and done later) the second counts
        seconds                         of steps, looks, pictures and files; empty if a part is unknown
        step_seconds, step_images       of the steps alone: their time, and the images of these very steps
    result.json
        test_error, test_loss           of the last look, after the last step
        best_test_error                 the smallest of all looks; null if lines of metrics.csv were lost
        seconds                         that of the last line of timing.csv; null if it is unknown
        images_per_second               step_images / step_seconds of the last line; null if no step was timed

Steps that a killed run took after its last checkpoint are taken again, and only the second time counts. Where a
table was lost, or was left by a version that did not count the images, the run says so when it goes on.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
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
TIMING = ("iteration", "seconds", "step_seconds", "step_images")
ROWS = 10
"""Lines of metrics.csv for each evaluation on the test set: the training loss costs nothing."""


@dataclass
class Sums:
    """Training loss and errors since the last line of metrics.csv."""

    loss: float = 0.0
    errors: int = 0
    images: int = 0

    @property
    def means(self) -> tuple[float, float]:
        """The mean loss of an image, and the error in per cent."""
        return self.loss / self.images, 100 * self.errors / self.images


@dataclass
class Clock:
    """The times in a line of timing.csv, since the run began."""

    seconds: float | None = 0.0  # None: not known
    step_seconds: float = 0.0  # of steps alone
    step_images: int = 0  # of these same steps

    def row(self, done: int) -> list[Any]:
        """Return the line after so many steps."""
        seconds = None if self.seconds is None else round(self.seconds, 3)
        return [done, seconds, round(self.step_seconds, 6), self.step_images]


@dataclass
class Made:
    """How far a run has come, besides the state."""

    sums: Sums = field(default_factory=Sums)
    clock: Clock = field(default_factory=Clock)
    rows: int = 0  # of metrics.csv
    look_due: bool = False  # the look at the test set at this place was broken off


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    data: tuple[Dataset, Dataset] | None = None,
) -> dict[str, Any]:
    """Train a network; write the files of its folder.

    Parameters
    ----------
    config : Config
        What to train, and how.
    out : path
        The run's folder, created if it is missing; only one running process can use it.
    resume : bool
        Go on with the run in this folder, if there is one.
    quiet : bool
        Print only warnings.
    data : (Dataset, Dataset), optional
        Training and test set in place of those that `config` names.

    Returns
    -------
    dict
        The content of ``result.json``. Errors are in per cent; ``seconds`` counts training and looking at the
        test set, not the start-up; ``images_per_second`` counts the steps alone. The head of this file says
        what each number is, and when it is None.

    Raises
    ------
    UserError
        If something in `config` or in the folder is impossible, the disk is full, or a number stops being
        finite. The newest good checkpoint stays.
    Stopped
        On Ctrl-C and SIGTERM, after the step was finished and saved; a look at the test set is broken off, and
        done when the run goes on. A second Ctrl-C does not wait: that is a plain `KeyboardInterrupt`.
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
        start, state, made, kernels = run.restore()
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
            run.take_steps(step, start, made)
        finally:
            step.close()
        over = run.result() if start == config.iterations else None  # of a run that was over already
        return over or run.finish(step.kind, made.rows)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, by Ctrl-C or SIGTERM, and is saved.

    Attributes
    ----------
    signal : int
        The signal's number; a shell's exit code is 128 more.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


class _LookBrokenOff(Exception):
    """Somebody wants the run to stop, between two mini-batches of the test set."""


@dataclass(frozen=True)
class _Run:
    """The constants of a run, and its actions in the order of time."""

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
        """Write config.json; print a warning if the run was computed in another way up to now."""
        path = self.out / "config.json"
        if path.exists() and (changed := differences(Config.read(path), self.config, "how")):
            warn(f"going on another way than before, which may change the last bits: {changed}")
        write_file(path, self.config.to_json().encode())

    def restore(self) -> tuple[int, dict[str, Array], Made, dict[str, Any]]:
        """Return where to go on: the newest good checkpoint, else the beginning. Cut the tables back to it."""
        config, start, made, kernels, facts = self.config, 0, Made(), {}, dict[str, Any]()
        state = initialise(
            self.network, config.recipe, config.seed, gate_bias=config.gate_bias, dtype=config.dtype
        )
        found = load_newest_checkpoint(self.out, warn=warn)
        if found:
            path, (start, saved, facts) = found
            check_state(saved, state, path)
            if facts["what"] != config.part("what"):
                raise UserError(f"{path} is from another run than the config.json beside it.")
            state, kernels = saved, facts.get("kernels", {})
            made = Made(Sums(**facts["sums"]), look_due=facts.get("look_due", False))
            prune_checkpoints(path)
            self.say(f"{'resumed':9}after {start:,} iterations")
        for leftover in temporary_files(self.out):
            remove_file(leftover)
        # Where a look was broken off, a line may lie here that was followed by no checkpoint.
        cut_table(self.out / "metrics.csv", METRICS, start - made.look_due)
        cut_table(self.out / "timing.csv", TIMING, start)
        made.rows = self._rows(start, made, facts)
        made.clock = self._clock(start, made)
        return start, state, made, kernels

    def _rows(self, start: int, made: Made, facts: dict[str, Any]) -> int:
        """Return how many lines metrics.csv has had up to iteration `start`; say so if some are lost."""
        rows = read_table(self.out / "metrics.csv")
        if "rows" in facts:
            had = int(facts["rows"])
        else:  # a checkpoint of an earlier version knows at least how many images the last line is away
            last = int(rows[-1]["iteration"] or 0) if rows else 0
            whole = sum(map(self.batches.size, range(last, start))) == made.sums.images
            had = len(rows) + (not whole)
        if len(rows) < had:
            warn(
                f"{self.out / 'metrics.csv'} has lost lines: there will be no best error, "
                "and the curves begin with what is left."
            )
        return had

    def _clock(self, start: int, made: Made) -> Clock:
        """Return the times up to iteration `start`; say so if they are not known."""
        times = read_table(self.out / "timing.csv")
        last = times[-1] if times else dict.fromkeys(TIMING, 0.0)
        timed, images = last["step_seconds"], last.get("step_images")
        clock = Clock(last["seconds"], timed or 0.0, int(images or 0))
        if timed is None or images is None:  # a line of an earlier version: of which steps, it does not say
            clock = Clock(None)
        if last["iteration"] != start:
            clock.seconds = None
        over = start == self.config.iterations and not made.look_due and self.result()
        if start and clock.seconds is None and not over:
            warn(
                f"{self.out / 'timing.csv'} does not say how long the first {start:,} iterations took: "
                "the run will have no total time, and its images a second are those of the steps timed."
            )
        return clock

    def take_steps(self, step: Step, start: int, made: Made) -> None:
        """Take the steps from `start` on; write rows, curves and checkpoints when they are due."""
        config, batches, clock = self.config, self.batches, made.clock
        before, begun = clock.seconds, time.perf_counter()
        layout = "{n_fmt}/{total_fmt} |{bar}| {elapsed} gone, {remaining} left{postfix}"
        silent = self.quiet or start == config.iterations
        bar = progress(total=config.iterations, initial=start, quiet=silent, bar_format=layout)
        with bar, _deferred_interrupt() as interrupted:

            def wants_state(t: int) -> bool:
                """Return whether the state after iteration t is evaluated or saved."""
                due = any((t + 1) % every == 0 for every in (config.eval_every, config.checkpoint_every))
                return due or bool(interrupted)

            def settle(done: int, still: bool) -> None:
                """Do what is due after `done` steps: a look, rows, pictures, a checkpoint; or stop."""
                rate = learning_rate(config.recipe, done - 1, config.iterations)
                over = done == config.iterations
                look = made.look_due or over or done % config.eval_every == 0
                made.look_due = False
                found = None
                if look or row_is_due(done, config.eval_every):
                    try:
                        found = self.evaluate(step, interrupted) if look else None
                    except NotFinite as error:
                        what = f"the look at the {self.evaluated_on} set failed ({str(error).rstrip('.')})"
                        raise self.diverged(what, done - 1, rate) from error
                    except _LookBrokenOff:
                        made.look_due = True
                    else:
                        tested = (found.loss, found.error) if found else (None, None)
                        epoch = round(done / batches.iterations_per_epoch, 4)
                        mean_loss, mean_error = made.sums.means
                        row = [done, epoch, rate, mean_loss, mean_error, *tested]
                        append_row(self.out / "metrics.csv", row)
                        made.rows, made.sums = made.rows + 1, Sums()
                    if found:
                        self.draw()
                        if over:
                            self.draw_mistakes(found)
                        message = f"loss {mean_loss:.3f}, error {mean_error:.1f} %"
                        error_now = f"{self.evaluated_on} error {found.error:.2f} %"
                        self.say(f"iteration {done:,}: training {message}; {error_now}")
                saves = over or bool(interrupted and still) or done % config.checkpoint_every == 0
                if saves or made.sums.images == 0:
                    if before is not None:
                        clock.seconds = before + time.perf_counter() - begun
                    append_row(self.out / "timing.csv", clock.row(done))
                if saves:
                    state = step.state()
                    if bad := [name for name, array in state.items() if not np.isfinite(array).all()]:
                        raise self.diverged(f"{bad[0]} stopped being finite numbers", done - 1, rate)
                    facts: dict[str, Any] = {"what": config.part("what"), "sums": asdict(made.sums)}
                    facts |= {"kernels": step.kernels, "rows": made.rows}
                    facts |= {"look_due": True} if made.look_due else {}
                    save_checkpoint(self.out, done, state, facts)
                if interrupted and still and (made.look_due or not over):
                    raise Stopped(interrupted[0], f"saved after {done:,} iterations in {self.out}")

            if made.look_due:  # a look was broken off here
                settle(start, True)
            step_begun = time.perf_counter()
            for t, loss, errors, still in step.outcomes(start, config.iterations, wants_state):
                seconds = time.perf_counter() - step_begun
                if not isfinite(loss):
                    rate = learning_rate(config.recipe, t, config.iterations)
                    raise self.diverged(f"the loss became {loss}", t, rate)
                images, sums = batches.size(t), made.sums
                clock.step_seconds += seconds
                clock.step_images += images
                made.sums = Sums(sums.loss + loss, sums.errors + errors, sums.images + images)
                mean_loss, mean_error = made.sums.means
                speed = images / max(seconds, 1e-9)  # some clocks stand still for a while
                message = f"loss {mean_loss:.3f}, error {mean_error:.1f} %"
                bar.set_postfix_str(f"{message}, {speed:,.0f} images/s", refresh=False)
                bar.update()
                settle(t + 1, still)
                step_begun = time.perf_counter()

    def evaluate(self, step: Step, interrupted: Sequence[int] = ()) -> Evaluation:
        """Look at the test set, with the step's own processes; break off where `interrupted` gets an entry."""
        recipe, size = self.config.recipe, self.config.batch_size
        common = self.backend, self.network
        itemsize = self.config.dtype.itemsize

        def normalise(images: Array) -> Array:
            """Normalise a mini-batch; between two of them is where a look can be broken off."""
            if interrupted:
                raise _LookBrokenOff
            return self.batches.normalise(images)

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
        """Draw the confusion matrix and the most confident mistakes."""
        images, labels, classes = self.test.images, self.test.labels, self.test.classes
        write_file(self.out / "confusion.png", draw_confusion(found.predictions, labels, classes))
        write_file(self.out / "mistakes.png", draw_mistakes(images, found.logits, labels, classes))

    def diverged(self, what: str, t: int, rate: float) -> UserError:
        """Return an error that says when the numbers stopped being finite, and which checkpoint is left."""
        good = checkpoint_paths(self.out)
        kept = f"the last good checkpoint is {good[0]}" if good else "there was no checkpoint yet"
        return UserError(f"{what} in iteration {t} at learning rate {rate:g}; {kept}.")

    def result(self) -> dict[str, Any] | None:
        """Return what result.json holds, None where it is missing or no JSON (of numbers that are none)."""
        try:
            found = json.loads((self.out / "result.json").read_text(encoding="utf-8"))
            json.dumps(found, allow_nan=False)  # earlier versions wrote NaN
        except (OSError, ValueError):
            return None
        mine = isinstance(found, dict) and found.get("iterations") == self.config.iterations
        return found if mine else None

    def finish(self, step: str, lines: int) -> dict[str, Any]:
        """Write result.json, from what the folder holds, the kind of step, and the lines of metrics.csv."""
        config, network = self.config, self.network
        table = read_table(self.out / "metrics.csv")
        whole, rows = len(table) >= lines, [row for row in table if row["test_error"] is not None]
        times = read_table(self.out / "timing.csv")
        if not all(isfinite(row["test_loss"] or 0) for row in rows):
            raise UserError(
                f"{self.out / 'metrics.csv'} has a look at the {self.evaluated_on} set whose loss is not a "
                "finite number: such a run has no error; start again with a smaller learning rate."
            )
        if not rows or rows[-1]["iteration"] != config.iterations:
            raise UserError(
                f"{self.out} has its last checkpoint, but metrics.csv lost its end: delete the newest "
                "checkpoint and go on with --resume, which takes the last steps again."
            )
        last = times[-1] if times and times[-1]["iteration"] == config.iterations else {}
        seconds, step_seconds, step_images = (last.get(name) for name in TIMING[1:])
        speed = round(step_images / step_seconds, 1) if step_images and step_seconds else None
        best = min(row["test_error"] for row in rows if row["test_error"] is not None) if whole else None
        result: dict[str, Any] = {
            "test_error": rows[-1]["test_error"],
            "test_loss": rows[-1]["test_loss"],
            "best_test_error": best,
            "evaluated_on": self.evaluated_on,
            "iterations": config.iterations,
            "parameters": network.parameter_count,
            "multiply_adds": multiply_adds(network),
            "seconds": seconds,
            "images_per_second": speed,
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
        told = [
            f"{self.evaluated_on} error {result['test_error']:.2f} % after {config.iterations:,} iterations"
        ]
        told[0] += "" if best is None else f" (best {best:.2f} %)"
        told += [] if seconds is None else [f"{seconds:,.0f} s"]
        told += [] if speed is None else [f"{speed:,} images/s"]
        self.say(f"{', '.join(told)}; {self.out / 'curves.png'}")
        return result


def row_is_due(done: int, eval_every: int) -> bool:
    """Return whether metrics.csv gets a line after `done` iterations; the intervals are as equal as possible.

    Examples
    --------
    >>> [done for done in range(1, 51) if row_is_due(done, 25)]
    [3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40, 43, 45, 48, 50]
    """
    return done * ROWS // eval_every > (done - 1) * ROWS // eval_every


def _check_run(config: Config, out: Path, resume: bool) -> None:
    """Refuse a folder that this run cannot use."""
    check_folder(out, resume)
    recorded = out / "config.json"
    if recorded.exists() and (changed := differences(Config.read(recorded), config, "what")):
        raise UserError(f"{out} holds another run, which differs in {changed}.")


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM instead of obeying it; a second one stops at once."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are handled only there
        yield pressed
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            if handler is not None:  # None: a handler that was not set from Python
                signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        restore()
        if is_open(sys.stderr):  # else 2 may be the number of any file
            text = b"\nfinishing this step, then saving; Ctrl-C again stops at once\n"
            with suppress(OSError):  # nobody reads it
                os.write(2, text)  # print is not re-entrant

    for number, handler in previous.items():
        if handler is not None:
            signal.signal(number, note)
    try:
        yield pressed
    finally:
        restore()
