"""Broken data, checkpoints and folders, met as a user meets them: one sentence, exit code 2, nothing lost.

Wrong flags are in test_train_cifar.py. Each row here breaks one thing in a finished small run or in its data,
and says which words the sentence must hold. Afterwards every file that was not itself broken is as it was.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.data.fake_cifar import write_binary, write_pickled
from tests.tiny_demo import TINY_CIFAR10, run_demo
from tinyres.init import initialise
from tinyres.networks import build_network
from tinyres.recipes import PAPER
from tinyres.system.locks import owned
from tinyres.training import checkpoint
from tinyres.training.checkpoint import checkpoint_paths, load_newest_checkpoint, save_checkpoint

SMALL = "--depth 8 --batch-size 8 --iterations 4 --eval-every 4 --checkpoint-every 2 --quiet"


class Place:
    """A finished run and the data it was trained on, ready to be broken."""

    def __init__(self, root: Path) -> None:
        self.run, self.data = root / "run", root / "data"
        self.batches = self.data / "cifar-10-batches-bin"

    def rewrite(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def new_run(self) -> None:
        shutil.rmtree(self.run)


def truncated_batch(place: Place) -> None:
    place.new_run()
    path = place.batches / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-100])


def missing_batch(place: Place) -> None:
    place.new_run()
    (place.batches / "data_batch_5.bin").unlink()


def label_out_of_range(place: Place) -> None:
    place.new_run()
    path = place.batches / "data_batch_1.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])


def no_data(place: Place) -> None:
    place.new_run()
    shutil.rmtree(place.data)


def data_is_a_file(place: Place) -> None:
    place.new_run()
    shutil.rmtree(place.batches)
    place.batches.write_text("not a folder")


def pickles_instead(place: Place) -> Path:
    place.new_run()
    shutil.rmtree(place.batches)
    return write_pickled(place.data, TINY_CIFAR10)


def hostile_pickle(place: Place) -> None:
    bomb = f"cos\nsystem\n(S'touch {place.data}/pwned'\ntR."
    (pickles_instead(place) / "data_batch_2").write_bytes(bomb.encode())


def foreign_pickle(place: Place) -> None:
    (pickles_instead(place) / "data_batch_2").write_bytes(b"\x80\x02K\x07.")


def text_instead_of_a_pickle(place: Place) -> None:
    (pickles_instead(place) / "data_batch_2").write_text("<html>404</html>")


def the_other_data_set(place: Place) -> None:
    place.new_run()
    place.batches.rename(place.data / "cifar-100-binary")


def unfinished(place: Place) -> list[Path]:
    """Take the run back to before its result."""
    (place.run / "result.json").unlink()
    return checkpoint_paths(place.run)


def every_checkpoint_truncated(place: Place) -> None:
    for path in unfinished(place):
        path.write_bytes(path.read_bytes()[:1000])


def every_checkpoint_garbage(place: Place) -> None:
    for path in unfinished(place):
        path.write_bytes(b"no checkpoint at all")


def every_checkpoint_with_a_flipped_bit(place: Place) -> None:
    for path in unfinished(place):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(bytes(content))


def checkpoint_of_another_program(place: Place) -> None:
    for path in unfinished(place):
        save_file({"weight": np.zeros(3, np.float32)}, path)


def checkpoint_of_another_network(place: Place) -> None:
    paths = unfinished(place)
    _, (_, _, facts) = load_newest_checkpoint(place.run, warn=print)
    for path in paths:
        path.unlink()
    save_checkpoint(place.run, 4, initialise(build_network(14), PAPER, 0), facts)


def checkpoint_from_the_future(place: Place) -> None:
    paths = unfinished(place)
    _, (_, state, facts) = load_newest_checkpoint(place.run, warn=print)
    for path in paths:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        save_checkpoint(place.run, 4, state, facts)


def config_cut_short(place: Place) -> None:
    path = place.run / "config.json"
    path.write_bytes(path.read_bytes()[:50])


def config_from_the_future(place: Place) -> None:
    place.rewrite(place.run / "config.json", '"format": 1', '"format": 99')


def config_of_another_depth(place: Place) -> None:
    path = place.run / "config.json"
    config = json.loads(path.read_text())
    config["what"]["depth"] = 14
    path.write_text(json.dumps(config))


def somebody_elses_folder(place: Place) -> None:
    place.new_run()
    place.run.mkdir()
    (place.run / "thesis.tex").write_text("years of work")


def a_file_where_the_folder_goes(place: Place) -> None:
    place.new_run()
    place.run.write_text("in the way")


def nothing(place: Place) -> None:
    """Break nothing: the flags are what is wrong."""


TABLE: list[tuple[Callable[[Place], object], str, str]] = [
    (no_data, "", "is not in"),
    (data_is_a_file, "", "cifar-10-batches-bin"),
    (missing_batch, "", "data_batch_5.bin"),
    (truncated_batch, "", "data_batch_3.bin"),
    (label_out_of_range, "", "data_batch_1.bin"),
    (the_other_data_set, "", "CIFAR-10"),
    (hostile_pickle, "", "data_batch_2"),
    (foreign_pickle, "", "data_batch_2"),
    (text_instead_of_a_pickle, "", "data_batch_2"),
    (every_checkpoint_truncated, "--resume", "every checkpoint in"),
    (every_checkpoint_garbage, "--resume", "every checkpoint in"),
    (every_checkpoint_with_a_flipped_bit, "--resume", "every checkpoint in"),
    (checkpoint_of_another_program, "--resume", "not written by tinyres"),
    (checkpoint_of_another_network, "--resume", "another network"),
    (checkpoint_from_the_future, "--resume", "later version"),
    (config_cut_short, "--resume", "config.json is damaged"),
    (config_from_the_future, "--resume", "later version"),
    (config_of_another_depth, "--resume", "depth (14 there, 8 here)"),
    (nothing, "", "--resume"),
    (nothing, "--resume --seed 1", "seed (0 there, 1 here)"),
    (nothing, "--resume --depth 14", "depth (8 there, 14 here)"),
    (nothing, "--resume --unit original", "unit (preactivation there, original here)"),
    (nothing, "--resume --weight-decay 0.01", "weight_decay"),
    (nothing, "--resume --batch-size 16", "batch_size (8 there, 16 here)"),
    (somebody_elses_folder, "", "other files"),
    (somebody_elses_folder, "--resume", "other files"),
    (a_file_where_the_folder_goes, "", "is a file, not a folder"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    write_binary(root / "data", TINY_CIFAR10)
    code, error = demo(root, "")
    assert (code, error) == (0, "")
    return root


def demo(root: Path, flags: str) -> tuple[int, str]:
    """Run the demo in this process, in the folder `root`; return its exit code and what it wrote to stderr."""
    error = io.StringIO()
    arguments = [*SMALL.split(), "--data-dir", "data", "--out", "run", *flags.split()]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.chdir(root)
        patch.setattr(sys, "argv", ["train_cifar.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_demo()
    return int(stop.value.code or 0), error.getvalue()


def contents(root: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("break_it", "flags", "words"), TABLE, ids=[f"{row[0].__name__} {row[1]}".strip() for row in TABLE]
)
def test_it_costs_one_sentence_and_nothing_is_lost(break_it, flags, words, finished, tmp_path) -> None:
    root = tmp_path / "place"
    shutil.copytree(finished, root)
    break_it(Place(root))
    before = contents(root)
    code, error = demo(root, flags)
    *warnings, sentence = error.splitlines()
    assert code == 2
    assert sentence.startswith("error: ")
    assert words in sentence
    assert "Traceback" not in error
    assert not [line for line in warnings if "checkpoint" not in line]  # those that are skipped are named
    assert contents(root) == before


def test_a_folder_in_use_by_a_living_run(finished, tmp_path) -> None:
    root = tmp_path / "place"
    shutil.copytree(finished, root)
    holder = (
        "import sys, pathlib; from tinyres.system.locks import owned\n"
        "with owned(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(root / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        code, error = demo(root, "--resume")
        process.communicate("")
    assert code == 2
    assert "in use" in error
    with owned(root / "run"):  # and free again
        pass
