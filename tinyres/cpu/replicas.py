"""Worker processes that take a share of every step: data parallelism on one machine.

Processes scale here; Python threads do not, because the work on a tile takes a tenth of a millisecond and the
interpreter's lock would change hands after each. The workers are forked, so they have the network and the data
set without a copy. Parameters and gradients lie in anonymous shared mappings, made before the fork; the system
frees them when the last process ends. Each worker has a pipe: it brings the number of the iteration to run, and
takes back a few numbers or the text of an exception, so two messages a step. Replicas that share a group of
batch norm also exchange sums through a board: meeting.py.

A forked worker holds a copy of the other end of every pipe, so it never sees end-of-file when the parent dies.
Instead, while it waits, it checks every second that its parent is still the same. It ignores Ctrl-C, which a
terminal sends to all processes: the parent decides what to do.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from threadpoolctl import ThreadpoolController

from tinyres.cpu.meeting import Abandoned
from tinyres.system.platform import fork_context, on_termination

HEARTBEAT = 1.0  # seconds between two checks that the other side is alive
PATIENCE = 5.0  # seconds that a worker has to end by itself before it is killed


class Replicas:
    """R processes that run the same function of (replica, request); the calling process is replica 0.

    Parameters
    ----------
    count : int
        R, at least 1.

    Raises
    ------
    RuntimeError
        From `run`, with the text of the exception, if a worker failed; all workers are gone then.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.parent = os.getpid()
        self.blas = ThreadpoolController()
        self.ticket = 0
        self.workers: list[tuple[BaseProcess, Connection]] = []
        self._finalizer = weakref.finalize(self, _dismiss, self.workers)

    def start(self, work: Callable[[int, Any], Any]) -> None:
        """Fork R - 1 workers; each inherits a copy of all objects as they are now.

        Parameters
        ----------
        work : callable
            Called as ``work(replica, request)``. A worker's request and its answer are pickled.
        """
        self.work = work
        for replica in range(1, self.count):
            context = fork_context()
            here, there = context.Pipe()
            arguments = (replica, work, there, self.parent, self.blas)
            worker = context.Process(target=_serve, args=arguments, name=f"replica {replica}", daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of threads. The only ones here are those of BLAS, which survive a fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                worker.start()
            there.close()
            self.workers.append((worker, here))

    def watch(self) -> None:
        """Raise `Abandoned` if a process has ended that this one may be waiting for."""
        gone = self._gone() if os.getpid() == self.parent else os.getppid() != self.parent
        if gone:
            raise Abandoned

    def run(self, requests: Sequence[Any]) -> list[Any]:
        """Let every replica answer its request; return the answers, in order."""
        if self.count > 1 and not self.workers:
            raise RuntimeError("this step was closed, or a replica of it failed: make a new one.")
        self.ticket += 1
        for (_, connection), request in zip(self.workers, requests[1:], strict=True):
            with suppress(ConnectionError):  # a worker that has ended is reported below
                connection.send((self.ticket, request))
        try:
            with self.blas.limit(limits=1, user_api="blas"):  # products of tiles are too small for threads
                results = [self.work(0, requests[0])]
        except Abandoned:  # a worker failed, and its answer says why
            results = []
        return results + [self._answer(replica) for replica in range(1, self.count)]

    def close(self) -> None:
        """End the worker processes."""
        self._finalizer()

    def _answer(self, replica: int) -> Any:
        """Return a worker's answer to the present ticket; answers to an interrupted step are dropped."""
        _, connection = self.workers[replica - 1]
        gone = ""
        try:
            while not gone:
                if connection.poll(HEARTBEAT):
                    ticket, result, failure = connection.recv()
                    if ticket != self.ticket:
                        continue
                    if failure:
                        self.close()
                        raise RuntimeError(f"replica {replica} failed:\n{failure}")
                    return result
                gone = self._gone()
        except (EOFError, ConnectionError):
            self.workers[replica - 1][0].join(PATIENCE)
            gone = self._gone() or f"replica {replica} does not answer."
        self.close()
        raise RuntimeError(gone)

    def _gone(self) -> str:
        """Say which worker has ended; return an empty string if none has."""
        for replica, (worker, _) in enumerate(self.workers, 1):
            if not worker.is_alive():
                return f"replica {replica} is gone (exit code {worker.exitcode})."
        return ""


def _serve(
    replica: int,
    work: Callable[[int, Any], Any],
    connection: Connection,
    parent: int,
    blas: ThreadpoolController,
) -> None:
    """Run a worker: answer requests until the parent sends None or has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_termination(signal.SIG_DFL)
    with blas.limit(limits=1, user_api="blas"), suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            while not connection.poll(HEARTBEAT):
                if os.getppid() != parent:
                    return
            ticket, request = connection.recv()
            if request is None:
                return
            try:
                answer = ticket, work(replica, request), ""
            except Abandoned:  # the replica that failed says why
                answer = ticket, None, ""
            except BaseException:
                answer = ticket, None, traceback.format_exc()
            connection.send(answer)


def _dismiss(workers: list[tuple[BaseProcess, Connection]]) -> None:
    """Ask the workers to end, wait, and kill those that still run."""
    for worker, connection in workers:
        if worker.is_alive():
            try:
                connection.send((0, None))
            except OSError:
                worker.kill()
    for worker, connection in workers:
        worker.join(PATIENCE)
        if worker.is_alive():
            worker.kill()
            worker.join()
        connection.close()
    workers.clear()


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let a Ctrl-C wait until the end of the block, so that it never leaves half a step.

    This applies only where Python's own handler would raise KeyboardInterrupt; other handlers stay as they are.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if received:
            raise KeyboardInterrupt
