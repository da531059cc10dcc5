"""Whatever is chosen among kernels and shapes: the plan is sound, the step as exact as the textbook's."""

from functools import cache

import numpy as np
import pytest

from tests.kernels.tools import require_compiler
from tests.plan.tools import (
    GROUPED,
    IMAGES,
    NETWORKS,
    SIZE,
    assert_as_good,
    build,
    gradients_of,
    planned,
    textbook,
)
from tinyres.networks import build_network
from tinyres.recipes import PAPER
from tinyres_gpu.kernels.common.sources import KERNELS
from tinyres_gpu.plan.choices import (
    APART,
    ARCHITECTURES,
    BOTH,
    HOPPER,
    WEIGHTS,
    Choices,
    Decision,
    Hardware,
    candidates,
    fits,
    kernel_of,
)
from tinyres_gpu.plan.compile import compile_step
from tinyres_gpu.plan.fold import FINISHING
from tinyres_gpu.plan.forward import Pixels
from tinyres_gpu.plan.launches import verify
from tinyres_gpu.plan.tuning.kept import as_json
from tinyres_gpu.plan.tuning.tune import questions_of


def asked(network, recipe, batch_size, **options):
    """Return the questions of a step: those of single launches, and those of launches for two."""
    return {
        words: question
        for merge in (False, True)
        for words, question in questions_of(
            compile_step(network, recipe, batch_size, choices=Choices(merge=merge), **options)
        ).items()
    }


def with_all(questions, pick, hardware=HOPPER):
    """Return choices where `pick` chooses from the candidates of each question."""
    return Choices(hardware, {words: pick(candidates(of, hardware)) for words, of in questions.items()})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_defaults_of_each_architecture_give_sound_plans(name, architecture):
    plan = compile_step(build(name), GROUPED, IMAGES, size=SIZE, choices=Choices(ARCHITECTURES[architecture]))
    verify(plan)
    convolutions = [launch for launch in plan.launches if launch.kernel.startswith("fused_")]
    assert convolutions == [launch for launch in plan.launches if launch.decision]
    for launch in convolutions:
        question, choice = launch.decision
        assert fits(question, choice)
        assert choice == candidates(question, ARCHITECTURES[architecture])[0]


def test_a_card_with_fewer_processors_splits_less_and_one_with_less_cache_adds_up_oftener():
    def weights(architecture):
        plan = compile_step(
            build_network(110), PAPER, 128, pixels=Pixels(), choices=Choices(ARCHITECTURES[architecture])
        )
        splits = [launch.grid[0] for launch in plan.launches if launch.decision and launch.kind == WEIGHTS]
        return max(splits), sum(launch.kernel == "sum_splits" for launch in plan.launches)

    (turing, often), (hopper, seldom) = weights("sm_75"), weights("sm_90")
    assert turing < hopper
    assert often > seldom


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_every_candidate_is_a_kernel_that_there_is(precision):
    names = {name for kernels in KERNELS.values() for name in kernels}
    for question in asked(build_network(164), PAPER, 128, precision=precision).values():
        found = candidates(question, HOPPER)
        assert len(found) == len(set(found)) > 1
        assert all(fits(question, choice) for choice in found)
        assert {kernel_of(Decision(question, choice)) for choice in found if choice != APART} <= names


def test_what_does_not_fit_is_not_chosen():
    for words, question in asked(build_network(20), PAPER, 128, precision="bf16").items():
        good = candidates(question, HOPPER)[0]
        for bad in (
            good._replace(staged=48),
            good._replace(tile=48),
            good._replace(tile=2 * question.columns),
            good._replace(blocks=0 if question.kind in (WEIGHTS, BOTH) else 264),
            good._replace(blocks=-1),
        ):
            assert not fits(question, bad)
            assert Choices(HOPPER, {words: bad}).decide(question).choice == good
        assert fits(question, good._replace(blocks=7) if good.blocks else good._replace(most=7))


def test_a_choice_reaches_the_launch():
    def plan(**change):
        every = asked(build_network(20), PAPER, 128)
        return compile_step(
            build_network(20), PAPER, 128, choices=with_all(every, lambda found: found[0]._replace(**change))
        )

    plain, narrow = plan(), plan(tile=16)
    assert {launch.decision.choice.tile for launch in plain.launches if launch.decision} == {16, 32, 64}
    assert all("<16, " in launch.kernel for launch in narrow.launches if launch.decision)
    never = compile_step(
        build_network(20),
        PAPER,
        128,
        choices=with_all(
            asked(build_network(20), PAPER, 128),
            lambda found: next((c for c in found if not c.blocks and not c.most), found[0]),
        ),
    )
    folded, apart = (sum(launch.kind == FINISHING for launch in p.launches) for p in (plain, never))
    assert folded == 0
    assert apart == 2 * 19 - 1  # the last batch norm's sums are found by the head, which has no choice


RANKS = {
    "float32": range(1, 9),
    "tf32": (*range(1, 9), *range(10, 18, 2)),
    "bf16": (*range(1, 9), *range(10, 24, 2)),
}
"""Which candidates run as a whole step. In every second of a convolution's the last block does not finish,
which goes with every kernel alike, and is not tried with all."""


@cache
def judges(precision):
    network = build("bottlenecks")
    plain = textbook(network, np.float32, precision, size=(16, 16))
    return textbook(network, np.float64, size=(16, 16)), plain


def whole(precision):
    return asked(build("bottlenecks"), GROUPED, IMAGES, size=(16, 16), precision=precision)


SMALL = Hardware(3, 1 << 16)
"""A card on which images as small as these are split differently by each of the candidates."""


def ranked(precision, rank):
    return with_all(whole(precision), lambda found: found[min(rank, len(found) - 1)], SMALL)


@pytest.mark.parametrize("precision", RANKS)
def test_the_ranks_have_every_candidate_but_for_who_finishes(precision):
    for words, question in whole(precision).items():
        ran = {ranked(precision, rank).chosen[words] for rank in (0, *RANKS[precision])}
        found = candidates(question, SMALL)
        assert {choice._replace(most=0) for choice in ran} == {choice._replace(most=0) for choice in found}
        assert {choice.most for choice in ran} == {choice.most for choice in found}


@require_compiler
@pytest.mark.parametrize(
    ("precision", "rank"), [(precision, rank) for precision, ranks in RANKS.items() for rank in ranks]
)
def test_every_choice_is_as_exact_as_the_textbook(precision, rank):
    """As measuring runs them: everybody's second candidate, everybody's third, ..."""
    (_, _, exact_gradients, exact), (_, _, plain_gradients, plain) = judges(precision)
    step = planned(build("bottlenecks"), precision=precision, size=(16, 16))
    step.choices = ranked(precision, rank)
    step(0)
    assert_as_good(gradients_of(step), plain_gradients, exact_gradients, "the gradient")
    assert_as_good(step.state(), plain, exact, "the value")
    assert step.kernels == as_json(step.choices.chosen)
