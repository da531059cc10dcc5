"""The choices among kernels made by measurement, on the card at hand.

Every question has a list of candidates, the default first. The whole step is compiled once for each place in
these lists: once with the first candidate of every question, once with the second candidate of every question,
and so on. The compiled steps run in scratch memory, so that nothing of the training is touched.

Then each different launch that had a choice is timed alone, several times. All of this is done in two rounds,
and the better of the two times counts: during the first round a card may still be waking up. Before each timed
launch the cache is flooded, and the launch that stands before it in the step runs. So the timed launch finds
about the same things in the cache as it will find there in the step.

A launch is timed together with the launches that it causes. One is the launch that finishes its moments or
sums, where its last block does not do that. Another is the launch that adds up the splits of weight gradients;
its time is shared out among them by the bytes of their splits. A launch that finds both gradients of a
convolution is measured last: it is compared with the fastest two launches that do the same, which are known by
then.

The default stays unless another choice is faster by more than `MARGIN`: noise does not decide.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from traceback import clear_frames
from typing import Any

from tinyres.array import Array
from tinyres.errors import UserError
from tinyres_gpu.device import describe_card
from tinyres_gpu.kernels.common.loader import Device
from tinyres_gpu.plan.backward import SUMMING
from tinyres_gpu.plan.choices import Choice, Choices, Question, candidates, fits
from tinyres_gpu.plan.emit import POSITION
from tinyres_gpu.plan.fold import FINISHING
from tinyres_gpu.plan.launches import Buffer, Launch, Plan
from tinyres_gpu.plan.program import Program
from tinyres_gpu.plan.tuning.kept import Warn, cache_path, digest, from_json, keep, read
from tinyres_gpu.plan.tuning.timing import Clock, card_clock, hardware_of

SWITCH = "TINYRES_KERNELS"
"""The environment variable: where its value is ``default``, nothing is measured."""

MARGIN = 0.03
ROUNDS = 2

CompileWith = Callable[[Choices], Plan]


def machine(cupy: Any) -> dict[str, str]:
    """Return the machine that a measurement is valid for: the card, the compiler, the source of the kernels."""
    card = describe_card(cupy)
    found = {name: card[name] for name in ("card", "compute_capability", "runtime_cuda")}
    return found | {"source": digest(Path(__file__).parents[2])}


class Scratch:
    """Memory in which plans run without changing anything of the training.

    Parameters
    ----------
    device : Device
    array_of : callable
        Returns the array of a permanent buffer; it is copied if a plan writes to it.
    """

    def __init__(self, device: Device, array_of: Callable[[Buffer], Array]) -> None:
        self.device, self.array_of = device, array_of

    def bind(self, plans: Sequence[Plan]) -> list[Program]:
        """Bind plans of the same step to memory that they share."""
        arrays: dict[str, Array] = {}
        written = {buffer.name for plan in plans for launch in plan.launches for buffer in launch.writes}
        for buffer in {buffer.name: buffer for plan in plans for buffer in plan.permanent}.values():
            array = self.array_of(buffer)
            arrays[buffer.name] = array.copy() if buffer.name in written else array
        arena = self.device.empty(max(plan.placement.size for plan in plans) // 4)
        return [Program(plan, self.device, arena, arrays) for plan in plans]


def questions_of(plan: Plan) -> dict[str, Question]:
    """Return the questions that a plan's launches ask; the keys are the questions in words."""
    asked = (decision.question for launch in plan.launches for decision in launch.decisions)
    return {str(question): question for question in asked}


def costs(program: Program, clock: Clock) -> dict[str, float]:
    """Run a step; return the seconds that each question's launches take, with the launches that they cause."""
    for name in (*(buffer.name for buffer in program.plan.inputs), POSITION):
        program.arrays[name][...] = 0
    program.run()
    launches = program.plan.launches
    alike: dict[tuple[Any, ...], list[int]] = {}
    asked_for: dict[str, tuple[str, ...]] = {}  # buffer -> the questions of the launch that wrote it
    for number, launch in enumerate(launches):
        if questions := tuple(str(decision.question) for decision in launch.decisions):
            alike.setdefault((questions, launch.grid, launch.bytes), []).append(number)
            asked_for |= {buffer.name: questions for buffer in launch.writes}
    seconds: defaultdict[str, float] = defaultdict(float)
    for (questions, *_), numbers in alike.items():
        first = numbers[0]
        end = first + 1 + _finishes(launches, first + 1)
        before = first - 1 if first and _in_common(launches[first - 1], launches[first]) else None
        taken = len(numbers) * clock(program, first, end, before)
        for question in questions:
            seconds[question] += taken
    for number, launch in enumerate(launches):
        if launch.kernel == SUMMING:
            splits = [buffer for buffer in launch.reads if buffer.name in asked_for]
            taken = clock(program, number, number + 1, number)  # it has just run, so all is in the cache
            for buffer in splits:
                for question in asked_for[buffer.name]:
                    seconds[question] += taken * buffer.nbytes / sum(one.nbytes for one in splits)
    return dict(seconds)


def _finishes(launches: Sequence[Launch], number: int) -> bool:
    """Whether a launch only finishes what the one before it found."""
    if number == len(launches) or launches[number].kind != FINISHING:
        return False
    return _in_common(launches[number - 1], launches[number])


def _in_common(one: Launch, other: Launch) -> bool:
    """Whether two launches use the same buffer of the arena."""
    names = {buffer.name for buffer in (*one.reads, *one.writes) if not buffer.permanent}
    return any(buffer.name in names for buffer in (*other.reads, *other.writes))


def measure(
    questions: Mapping[str, Question], known: Choices, compile_with: CompileWith, scratch: Scratch, clock: Clock
) -> dict[str, Choice]:
    """Find the fastest answers.

    Parameters
    ----------
    questions : mapping of str to Question
        The questions to be answered; the keys are the questions in words.
    known : Choices
        The answers to all other questions.
    compile_with : callable
        Compiles the step with given choices.
    scratch : Scratch
    clock : Clock

    Returns
    -------
    dict of str to Choice
    """
    rivals = {words: candidates(question, known.hardware) for words, question in questions.items()}
    ranks = range(max(map(len, rivals.values())))
    running = [{words: of[rank] for words, of in rivals.items() if rank < len(of)} for rank in ranks]
    plans = [compile_with(replace(known, chosen={**known.chosen, **choices})) for choices in running]
    programs = scratch.bind(plans)
    rounds = [[costs(program, clock) for program in programs] for _ in range(ROUNDS)]
    return {
        words: _fastest(of, [min(found[rank][words] for found in rounds) for rank in range(len(of))])
        for words, of in rivals.items()
    }


def _fastest(rivals: Sequence[Choice], seconds: Sequence[float]) -> Choice:
    """Return the fastest choice, or the first one, the default, if it is as fast within the margin."""
    best = min(seconds)
    return rivals[0] if seconds[0] <= (1 + MARGIN) * best else rivals[seconds.index(best)]


def choose(
    compile_with: CompileWith,
    scratch: Scratch,
    cupy: Any,
    recorded: Mapping[str, Any] | None,
    warn: Warn,
) -> tuple[Choices, str]:
    """Answer all questions of a step: as earlier in this run, from the cache, or by measuring.

    Parameters
    ----------
    compile_with : callable
        Compiles the step with given choices.
    scratch : Scratch
    cupy : module
    recorded : mapping, optional
        The choices that the run has used up to now, in the form that JSON has.
    warn : callable
        Takes a sentence.

    Returns
    -------
    choices : Choices
        They answer every question of the step.
    how : str
        How the choices were found, in words.

    Raises
    ------
    UserError
        If the environment variable `SWITCH` has an unknown value.
    """
    hardware = hardware_of(cupy)
    single = questions_of(compile_with(Choices(hardware, merge=False)))
    questions = single | questions_of(compile_with(Choices(hardware)))
    defaults = {words: candidates(question, hardware)[0] for words, question in questions.items()}
    if recorded:
        chosen = _as_recorded(recorded)
        missing = _unanswered(questions, chosen)
        if not missing:
            return Choices(hardware, chosen), "as this run had them before"
        warn(
            f"the run's earlier choices of kernels are not for this step ({len(missing)} of {len(questions)} "
            "are missing): going on with others, which may change the last bits."
        )
    wanted = os.environ.get(SWITCH, "measured")
    if wanted == "default":
        return Choices(hardware, defaults), f"defaults, as {SWITCH} says"
    if wanted != "measured":
        raise UserError(f"{SWITCH} must be measured or default, not {wanted!r}.")
    of = machine(cupy)
    path = cache_path(of)
    cached = read(path, warn)
    missing = _unanswered(questions, cached)
    if not missing:
        return Choices(hardware, {words: cached[words] for words in questions}), f"measured before, in {path}"
    begun = time.perf_counter()
    chosen = {words: cached[words] for words in questions if words not in missing}
    found: dict[str, Choice] = {}
    try:
        clock = card_clock(cupy, hardware)
        for merge in (False, True):  # first the two launches that one launch for both gradients competes with
            wanting = {words: question for words, question in missing.items() if merge != (words in single)}
            if wanting:
                known = Choices(hardware, chosen | found, merge)
                found |= measure(wanting, known, compile_with, scratch, clock)
    except MemoryError as error:
        clear_frames(error.__traceback__)  # the frames hold the arrays that filled the memory
        warn("the card's memory is too small to measure kernels in: taking the defaults.")
        return Choices(hardware, defaults), "defaults, for want of memory to measure in"
    where = f", kept in {path}" if keep(path, of, cached | found, warn) else ""
    changed = sum(found[words] != defaults[words] for words in found)
    how = (
        f"measured: {len(found)} kinds of launch in {time.perf_counter() - begun:.0f} s, "
        f"{changed} not as by default{where}"
    )
    return Choices(hardware, chosen | found), how


def _as_recorded(recorded: Mapping[str, Any]) -> dict[str, Choice]:
    try:
        return from_json(recorded)
    except ValueError:  # written by another version: it answers no question, and `choose` warns
        return {}


def _unanswered(questions: Mapping[str, Question], chosen: Mapping[str, Choice]) -> dict[str, Question]:
    return {
        words: question
        for words, question in questions.items()
        if words not in chosen or not fits(question, chosen[words])
    }
