"""Worker processes that take a share of every step: data parallelism on one machine.

Python threads do not scale here (tiles of a tenth of a millisecond hand the interpreter's lock over all the
time), processes do. The workers are forked, so they have the network and the data set without a copy; numbers
travel through anonymous shared mappings made before the fork, which nothing can leave behind, and a pipe to
each worker carries the iteration to run and, back, a few numbers or the text of an exception. That is two
messages a step.

A forked worker holds a copy of every pipe's other end, so it never sees end-of-file when the parent dies: while
it waits it looks every second at whether its parent is still the same. It ignores Ctrl-C, which a terminal
sends to all processes; the parent decides.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from threadpoolctl import ThreadpoolController

CAN_FORK = "fork" in multiprocessing.get_all_start_methods()
HEARTBEAT = 1.0  # seconds between looks at whether the other side is alive
PATIENCE = 5.0  # seconds a worker has to leave before it is killed


class Replicas:
    """R processes that run the same function of (replica, t); the caller's own is replica 0.

    Parameters
    ----------
    count : int
        R, at least 1; R - 1 workers are forked at once.
    work : callable
        ``work(replica, t)``; what it returns in a worker is pickled and should be small.

    Raises
    ------
    RuntimeError
        From `run`, with the text of the exception, if a worker failed; all workers are gone then.
    """

    def __init__(self, count: int, work: Callable[[int, int], Any]) -> None:
        self.count, self.work = count, work
        self.blas = ThreadpoolController()
        self.ticket = 0
        self.workers: list[tuple[BaseProcess, Connection]] = []
        for replica in range(1, count):
            context = multiprocessing.get_context("fork")  # by name: Python 3.14's default is another
            here, there = context.Pipe()
            arguments = (replica, work, there, os.getpid(), self.blas)
            worker = context.Process(target=_serve, args=arguments, name=f"replica {replica}", daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of threads; BLAS's own, the only ones here, survive a fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                worker.start()
            there.close()
            self.workers.append((worker, here))
        self._finalizer = weakref.finalize(self, _dismiss, self.workers)

    def run(self, t: int) -> list[Any]:
        """Let every replica run iteration t and return what they returned, in order."""
        if self.count > 1 and not self.workers:
            raise RuntimeError("this step was closed, or a replica of it failed: make a new one.")
        self.ticket += 1
        for _, connection in self.workers:
            with suppress(ConnectionError):  # a worker that is gone is reported below
                connection.send((self.ticket, t))
        with self.blas.limit(limits=1, user_api="blas"):  # products of tiles are too small to share
            results = [self.work(0, t)]
        return results + [self._answer(replica) for replica in range(1, self.count)]

    def close(self) -> None:
        """Send the workers home."""
        self._finalizer()

    def _answer(self, replica: int) -> Any:
        """Return a worker's answer to the present ticket; what is left of an interrupted step is dropped."""
        worker, connection = self.workers[replica - 1]
        try:
            while worker.is_alive() or connection.poll():
                if connection.poll(HEARTBEAT):
                    ticket, result, failure = connection.recv()
                    if failure:
                        self.close()
                        raise RuntimeError(f"replica {replica} failed:\n{failure}")
                    if ticket == self.ticket:
                        return result
        except (EOFError, ConnectionError):
            worker.join(PATIENCE)
        code = worker.exitcode
        self.close()
        raise RuntimeError(f"replica {replica} is gone (exit code {code}).")


def _serve(
    replica: int,
    work: Callable[[int, int], Any],
    connection: Connection,
    parent: int,
    blas: ThreadpoolController,
) -> None:
    """Answer requests until there is nobody left to ask: a worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with blas.limit(limits=1, user_api="blas"), suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            while not connection.poll(HEARTBEAT):
                if os.getppid() != parent:
                    return
            ticket, t = connection.recv()
            if t is None:
                return
            try:
                answer = ticket, work(replica, t), ""
            except BaseException:
                answer = ticket, None, traceback.format_exc()
            connection.send(answer)


def _dismiss(workers: list[tuple[BaseProcess, Connection]]) -> None:
    """Ask the workers to leave, wait, kill whoever stays."""
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
    """Let a Ctrl-C wait until the end of the block, so that it finds a whole step done.

    Only where Python's own handler would raise KeyboardInterrupt: a program with a handler of its own keeps it.
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
