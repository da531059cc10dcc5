"""Worker processes that take a share of every step: data parallelism on one machine.

Python threads do not scale here (tiles of a tenth of a millisecond hand the interpreter's lock over all the
time), processes do. The workers are forked, so they have the network and the data set without a copy; numbers
travel through anonymous shared mappings made before the fork, which nothing can leave behind, and a pipe to
each worker carries the iteration to run and, back, a few numbers or the text of an exception. That is two
messages a step. Where several replicas share a group of batch norm, they meet on a board besides: meeting.py.

A forked worker holds a copy of every pipe's other end, so it never sees end-of-file when the parent dies: while
it waits it looks every second at whether its parent is still the same. It ignores Ctrl-C, which a terminal
sends to all processes; the parent decides.
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

HEARTBEAT = 1.0  # seconds between looks at whether the other side is alive
PATIENCE = 5.0  # seconds a worker has to leave before it is killed


class Replicas:
    """R processes that run the same function of (replica, request); the caller's own is replica 0.

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
        """Fork R - 1 workers; what they inherit is what there is now.

        Parameters
        ----------
        work : callable
            ``work(replica, request)``; both what a worker is asked for and what it returns are pickled.
        """
        self.work = work
        for replica in range(1, self.count):
            context = fork_context()
            here, there = context.Pipe()
            arguments = (replica, work, there, self.parent, self.blas)
            worker = context.Process(target=_serve, args=arguments, name=f"replica {replica}", daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of threads; BLAS's own, the only ones here, survive a fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                worker.start()
            there.close()
            self.workers.append((worker, here))

    def watch(self) -> None:
        """Raise `Abandoned` if a process is gone that this one may be waiting for."""
        gone = self._gone() if os.getpid() == self.parent else os.getppid() != self.parent
        if gone:
            raise Abandoned

    def run(self, requests: Sequence[Any]) -> list[Any]:
        """Let every replica answer its request; return the answers, in order."""
        if self.count > 1 and not self.workers:
            raise RuntimeError("this step was closed, or a replica of it failed: make a new one.")
        self.ticket += 1
        for (_, connection), request in zip(self.workers, requests[1:], strict=True):
            with suppress(ConnectionError):  # a worker that is gone is reported below
                connection.send((self.ticket, request))
        try:
            with self.blas.limit(limits=1, user_api="blas"):  # products of tiles are too small to share
                results = [self.work(0, requests[0])]
        except Abandoned:  # by a worker, whose answer says why
            results = []
        return results + [self._answer(replica) for replica in range(1, self.count)]

    def close(self) -> None:
        """Send the workers home."""
        self._finalizer()

    def _answer(self, replica: int) -> Any:
        """Return a worker's answer to the present ticket; what is left of an interrupted step is dropped."""
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
        """Say which worker is gone; an empty string if none is."""
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
    """Answer requests until there is nobody left to ask: a worker's whole life."""
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
            except Abandoned:  # whoever failed says why
                answer = ticket, None, ""
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
