"""A training run that takes no time: real folder, real checkpoints, a toy in place of the network's step.

The toy step is what the real one promises to be, a pure function of the state and of t. Run as a script, this
file kills such a run before every single operation on its files, resumes it, and compares the ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

import tinyres.training.train
from tinyres.backend import Job, Step
from tinyres.data import Dataset
from tinyres.step import reference
from tinyres.training.config import Config
from tinyres.training.evaluate import Evaluation
from tinyres_gpu.ahead import StepAhead

CONFIG = Config(
    dataset="toy",
    depth=5,
    block="single",
    iterations=12,
    batch_size=8,
    backend="reference",
    eval_every=20,
    checkpoint_every=3,
)


class ToyStep(Step):
    """Moves every array a little, differently in each iteration; `accidents` says what happens when."""

    kind = "toy"
    accidents: dict = {}  # noqa: RUF012 (tests set it)

    def __init__(self, backend, job: Job):
        self.arrays = {name: array.copy() for name, array in job.state.items()}

    def __call__(self, t):
        accident = self.accidents.get(t)
        if accident == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if accident == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        loss = float(np.abs(self.arrays["fc.bias"]).sum()) + 0.1 * t
        for array in self.arrays.values():
            array *= 0.9
            array += np.nan if accident == "nan weights" else np.sin(t + 1.0)
        return np.nan if accident == "nan loss" else loss, t % 8

    def infer(self, images):
        return self.arrays["fc.bias"]

    def state(self):
        return {name: array.copy() for name, array in self.arrays.items()}

    def load(self, state):
        raise NotImplementedError


class AheadToyStep(StepAhead, ToyStep):
    """The same with a GPU's habits: an iteration is launched, and its outcome fetched later."""

    def __init__(self, backend, job):
        ToyStep.__init__(self, backend, job)
        self.under_way = {}
        self.ran_ahead = 0

    def launch(self, t):
        self.ran_ahead += len(self.under_way)
        self.under_way[t] = ToyStep.__call__(self, t)

    def result(self, t):
        return self.under_way.pop(t)

    def infer(self, images):
        assert not self.under_way, "a look at the test set, with the state of another iteration"
        return ToyStep.infer(self, images)

    def state(self):
        assert not self.under_way, "a state was asked for that is about to change"
        return ToyStep.state(self)


def toy_data(images: int = 40) -> tuple[Dataset, Dataset]:
    """Return a training and a test set of noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images + 16, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, images + 16)
    classes = tuple("abcdefghij")
    return (
        Dataset("toy", pixels[:images], labels[:images], classes),
        Dataset("toy", pixels[images:], labels[images:], classes),
    )


def toy_score(backend, infer, *_, **__) -> Evaluation:
    """Stand in for a look at the test set."""
    return Evaluation(float(infer(None).sum() ** 2), 50.0, np.zeros((16, 10)))


def put_toys_in(patch=setattr, step=ToyStep) -> None:
    """Replace the slow parts of `tinyres.training.train`; `patch` may be a monkeypatch's setattr."""
    patch(tinyres.training.train, "get_backend", lambda name, precision: replace(reference(), step=step))
    patch(tinyres.training.train, "score", toy_score)
    for picture in ("draw_curves", "draw_confusion", "draw_mistakes"):
        patch(tinyres.training.train, picture, lambda *_: b"a picture")


def toy_train(out: Path, config: Config = CONFIG, **options):
    """Train the toy; `put_toys_in` comes first."""
    return tinyres.training.train.train(config, out, quiet=True, data=toy_data(), **options)


def ending(out: Path) -> dict[str, bytes]:
    """Return what must have the same bits however often a run was killed."""
    names = ["metrics.csv", "config.json", *(path.name for path in out.glob("checkpoint-*"))]
    return {name: (out / name).read_bytes() for name in names}


def in_a_child(out: Path, kill_at: int = -1) -> int:
    """Train in a forked process that kills itself before operation `kill_at`; return its operations or -1."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def operation(torn: int | None = None) -> None:
            nonlocal count
            if count == kill_at:
                if torn is not None and os.fstat(torn).st_size > 3:  # of a flush, only a part arrived
                    with suppress(OSError):
                        os.ftruncate(torn, os.fstat(torn).st_size - 3)
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        def audit(event: str, arguments: tuple) -> None:
            ours = arguments and str(arguments[0]).startswith(str(out))
            if ours and event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
                operation()

        flush = os.fsync
        os.fsync = lambda number: (operation(number), flush(number))[1]
        sys.addaudithook(audit)
        toy_train(out, resume=True)
        os.write(writer, str(count).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with open(reader) as pipe:
        answer = pipe.read()
    assert (status == 0) != (status == signal.SIGKILL), status
    return int(answer or -1)


def kill_everywhere(folder: Path) -> None:
    """Kill before each operation, sometimes once more somewhere in the resumed run, then let it end."""
    whole = folder / "whole"
    operations = in_a_child(whole)
    expected = ending(whole)
    for kill_at in range(operations):
        out = folder / "killed"
        assert in_a_child(out, kill_at) == -1
        if kill_at % 3 == 0:
            in_a_child(out, 7 * kill_at % operations)
        in_a_child(out)
        assert ending(out) == expected, f"killed before operation {kill_at}"
        assert (out / "result.json").exists()
        shutil.rmtree(out)
    print(operations)


if __name__ == "__main__":
    put_toys_in()
    kill_everywhere(Path(sys.argv[1]))
