"""A program replayed as a CUDA graph: one launch instead of hundreds.

Recording needs kernels that are compiled and memory that is there, so the first run is an ordinary one, launch
by launch, and it is a real step. The second run is recorded; recording computes nothing, the launch of the
graph does. Recorded launches have their arguments baked in. They cannot go wrong by that: the program that
they belong to holds on to its memory as long as the graph lives, and never changes it for other.
"""

from __future__ import annotations

from typing import Any

from tinyres_gpu.plan.program import Program


class Replay:
    """A program and, from its second run on, the graph of it.

    Parameters
    ----------
    program : Program
    stream : cupy.cuda.Stream
        Not the default one, which cannot be recorded; it must be the current one whenever this runs.

    Attributes
    ----------
    graph : cupy.cuda.Graph or None
    """

    def __init__(self, program: Program, stream: Any) -> None:
        self.program, self.stream = program, stream
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
        self.graph.launch(self.stream)

    def _record(self) -> Any:
        self.stream.begin_capture()
        try:
            self.program.run()
        finally:
            graph = self.stream.end_capture()
        graph.upload(self.stream)
        return graph
