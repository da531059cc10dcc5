"""A training step that keeps the GPU busy: iteration t + 1 is started before anybody reads the loss of t."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tinyres.backend import Step


class StepAhead(Step):
    """A step that works on a GPU by itself: the host launches an iteration, and fetches its outcome later."""

    def launch(self, t: int) -> None:
        """Start iteration t; return before it is done."""
        raise NotImplementedError

    def result(self, t: int) -> tuple[float, int]:
        """Wait for iteration t; return the mini-batch's summed loss and its number of errors."""
        raise NotImplementedError

    def __call__(self, t: int) -> tuple[float, int]:
        """Run iteration t and return the mini-batch's summed loss and its number of errors."""
        self.launch(t)
        return self.result(t)

    def outcomes(
        self, first: int, last: int, wants_state: Callable[[int], bool]
    ) -> Iterator[tuple[int, float, int, bool]]:
        """Run iterations first to last - 1, and launch each one ahead; see `tinyres.backend.Step.outcomes`."""
        launched = first
        for t in range(first, last):
            if launched == t:
                self.launch(t)
                launched += 1
            if launched < last and not wants_state(t):
                self.launch(launched)
                launched += 1
            yield t, *self.result(t), launched == t + 1
