"""A program replayed as a CUDA graph: one launch instead of hundreds.

Recording needs compiled kernels and allocated memory. So the first run is an ordinary one, launch by launch,
and it is a real step. The second run is recorded. Recording computes nothing; the launch of the graph, which
follows, computes the step. A recorded launch keeps the addresses of its arguments for good. These addresses
stay right, because the program holds on to its memory as long as the graph lives, and never exchanges it.
"""

from __future__ import annotations

from typing import Any

from tinyres_gpu.plan.program import Program


class Replay:
    """A program and, from its second run on, the graph of it.

    Parameters
    ----------
    program : Program
    cuda_stream : cupy.cuda.Stream
        Not the default CUDA stream, which cannot be recorded. It must be the current one whenever `run` is
        called.

    Attributes
    ----------
    graph : cupy.cuda.Graph or None
    """

    def __init__(self, program: Program, cuda_stream: Any) -> None:
        self.program, self.cuda_stream = program, cuda_stream
        self.graph: Any = None
        self._compiled = False

    def run(self) -> None:
        """Run the program's launches, in order."""
        if not self._compiled:
            self.program.run()
            self._compiled = True
            return
        if self.graph is None:
            self.graph = self._record()
        self.graph.launch(self.cuda_stream)

    def _record(self) -> Any:
        self.cuda_stream.begin_capture()
        try:
            self.program.run()
        finally:
            graph = self.cuda_stream.end_capture()
        graph.upload(self.cuda_stream)
        return graph
