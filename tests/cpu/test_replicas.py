"""Replicas: the same numbers as one process, and nothing left behind however a run ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cpu.test_step import make_batches, random_state
from tinyres.backend import Job, get_backend
from tinyres.cpu.replicas import Replicas, interrupts_deferred
from tinyres.cpu.step import how_many, share
from tinyres.data import FromFunction
from tinyres.errors import UserError
from tinyres.networks import build_network
from tinyres.recipes import PAPER, TORCH_PORT
from tinyres.system.platform import usable_cores

NETWORK = build_network(8)
ROOT = Path(__file__).parents[2]


def make_step(batches, replicas, dtype=np.float32):
    start = random_state(NETWORK, TORCH_PORT, dtype)
    backend = get_backend("numpy")
    return backend.make_step(
        Job(NETWORK, TORCH_PORT, batches, start, iterations=8, dtype=dtype, replicas=replicas)
    )


def run(batches, replicas, steps=3):
    step = make_step(batches, replicas)
    assert step.replicas == replicas
    results = [step(t) for t in range(steps)]
    state = step.state()
    step.close()
    return results, state


def started(count, work):
    replicas = Replicas(count)
    replicas.start(work)
    return replicas


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_running(pid)


def test_two_replicas_of_a_group_each_give_the_bits_of_one_process():
    batches = make_batches(8, (16, 16), np.float32)
    one, two, again = (run(batches, replicas) for replicas in (1, 2, 2))
    assert one[0] == two[0] == again[0]
    for name, value in one[1].items():
        np.testing.assert_array_equal(two[1][name], value)
        np.testing.assert_array_equal(again[1][name], value)


def test_a_short_mini_batch_with_fewer_groups_than_replicas():
    sizes = {0: 8, 1: 3}  # two groups, then one

    @FromFunction
    def batches(t):
        return make_batches(sizes[t], (16, 16), np.float32)(t)

    one, two = (run(batches, replicas, steps=2) for replicas in (1, 2))
    assert one[0] == two[0]
    assert all(np.array_equal(two[1][name], value) for name, value in one[1].items())


def test_each_replica_draws_its_own_share_only():
    class Shares:
        def __init__(self):
            self.whole = make_batches(8, (16, 16), np.float32)

        def size(self, t):
            return 8

        def __call__(self, t, share=slice(None)):
            images, labels = self.whole(t)
            if t > 0:  # iteration 0 is also asked for as a whole, to see the size of the images
                assert (share.start, share.stop) in ((0, 4), (4, 8))
            return images[share], labels[share]

    one = run(make_batches(8, (16, 16), np.float32), 1)
    assert one[0] == run(Shares(), 2)[0]


def test_a_loaded_state_reaches_the_workers():
    batches = make_batches(8, (16, 16), np.float32)
    first, second = make_step(batches, 2), make_step(batches, 2)
    first(0)
    second.load(first.state())
    assert first(1) == second(1)
    first.close()
    second.close()


def test_the_number_of_replicas_divides_the_groups_or_the_groups_divide_it():
    assert how_many(4, 6 * 64, 6) == 3
    assert how_many(8, 128, 2) == 8
    assert how_many(16, 128, 2) == 8  # 16 images each
    assert how_many(6, 128, 2) == 4  # 64 images are not three equal shares
    assert how_many(None, 1, 1) == 1
    assert how_many(None, 128, 2) >= min(2, usable_cores())


@pytest.mark.parametrize("size", [1, 2, 5, 7, 9, 64, 100, 128, 192, 256])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 6, 8])
def test_shares_cover_the_mini_batch_and_teams_agree(size, replicas):
    groups = PAPER.groups(size)
    shares = [share(size, groups, replicas, replica) for replica in range(replicas)]
    covered = [place for images, _ in shares for place in range(size)[images]]
    assert covered == list(range(size))
    n = size // groups
    for replica, (images, members) in enumerate(shares):
        if images.start == images.stop:
            continue
        assert replica in members
        if len(members) > 1:
            own = [shares[member][0] for member in members]
            assert own[0].start % n == 0
            assert own[-1].stop == own[0].start + n
            assert len({part.stop - part.start for part in own}) == 1
            assert all(shares[member][1] == members for member in members)
        else:
            assert images.start % n == images.stop % n == 0


def test_an_exception_in_a_worker_reaches_the_user_and_ends_the_workers():
    parent = os.getpid()

    def work(replica, t):
        if t == 1 and os.getpid() != parent:
            raise ValueError("the second replica stumbled")
        return os.getpid()

    replicas = started(2, work)
    _, worker = replicas.run([0, 0])
    with pytest.raises(RuntimeError, match=r"(?s)replica 1 failed.*stumbled"):
        replicas.run([1, 1])
    assert wait_until_gone(worker)
    with pytest.raises(RuntimeError, match="make a new one"):
        replicas.run([2, 2])


def test_a_killed_worker_is_reported():
    replicas = started(2, lambda replica, t: os.getpid() if t == 0 or replica == 0 else time.sleep(60))
    _, worker = replicas.run([0, 0])
    replicas.work = lambda replica, t: os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="replica 1 is gone"):
        replicas.run([1, 1])


def test_an_exception_in_the_parents_share_does_not_mix_up_answers():
    parent = os.getpid()

    def work(replica, t):
        if t == 1 and os.getpid() == parent:
            raise ValueError("the parent stumbled")
        return t

    replicas = started(2, work)
    with pytest.raises(ValueError, match="the parent stumbled"):
        replicas.run([1, 1])
    assert replicas.run([2, 2]) == [2, 2]
    replicas.close()


def test_closing_ends_the_workers():
    replicas = started(3, lambda replica, t: os.getpid())
    pids = replicas.run([0] * 3)
    assert len(set(pids)) == 3
    replicas.close()
    assert not any(is_running(pid) for pid in pids[1:])
    replicas.close()


def test_a_forgotten_step_ends_its_workers():
    replicas = started(2, lambda replica, t: os.getpid())
    _, worker = replicas.run([0, 0])
    del replicas
    assert wait_until_gone(worker)


SCRIPT = """
import os, sys, time
from tinyres.cpu.replicas import Replicas
replicas = Replicas(2)
replicas.start(lambda replica, t: (time.sleep(0.05), os.getpid())[1])
print(replicas.run([0, 0])[1], flush=True)
while True:
    replicas.run([1, 1])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_parent_leaves_no_worker(number):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.send_signal(number)
        parent.wait(20)
        assert wait_until_gone(worker)


def test_ctrl_c_waits_for_the_end_of_a_step():
    done = []

    def step():
        with interrupts_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_four_replicas_of_half_a_group_each_agree_with_one_process():
    """In float64 up to rounding: their sums are added up in another order."""
    batches = make_batches(128, (16, 16), np.float64)
    steps = [make_step(batches, replicas, np.float64) for replicas in (1, 4, 4)]
    assert [step.replicas for step in steps] == [1, 4, 4]
    for t in range(2):
        one, four, again = (step(t) for step in steps)
        assert four == again
        assert four[0] == pytest.approx(one[0], rel=1e-10)
        assert four[1] == one[1]
    one, four, again = (step.state() for step in steps)
    for name, value in one.items():
        assert np.abs(four[name] - value).max() <= 1e-9 * max(np.abs(value).max(), 1e-3), name
        np.testing.assert_array_equal(four[name], again[name])
    for step in steps:
        step.close()


def test_a_failure_in_the_middle_of_a_shared_group_ends_everybody():
    batches = make_batches(128, (16, 16), np.float32)
    for culprit in (0, 3):
        step = make_step(batches, 4)
        step(0)
        workers = [worker.pid for worker, _ in step._processes.workers]

        def stumble(self, *arguments):
            raise ValueError("stumbled over a convolution")

        if culprit == 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tinyres.cpu.layers.ConvLayer.backward", stumble)
                with pytest.raises(ValueError, match="stumbled"):
                    step(1)
            loss, _ = step(2)  # nobody is stuck in the step that was given up
            assert np.isfinite(loss)
            step.close()
        else:
            os.kill(workers[culprit - 1], signal.SIGKILL)
            with pytest.raises(UserError, match=r"replica 3 is gone \(exit code -9\)"):
                step(1)
        assert not any(is_running(pid) for pid in workers)


def test_a_step_whose_worker_was_killed_is_a_user_error_and_a_worker_that_failed_is_not():
    step = make_step(make_batches(8, (16, 16), np.float32), 2)
    step(0)
    worker, _ = step._processes.workers[0]
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"replica 1 is gone \(exit code -9\), .* fewer --replicas"):
        step(1)
    with pytest.raises(RuntimeError, match="was closed"):
        step(2)
