"""Plans as data: which networks have one, what one costs, and that a damaged one is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.tools import EMULATED, require_compiler
from tests.plan.tools import GROUPED, IMAGES, NETWORKS, SIZE, build, gradients_of, planned
from tinyres.networks import build_network
from tinyres.recipes import PAPER
from tinyres.training.cost import multiply_adds
from tinyres_gpu.kernels.common.sources import KERNELS, ArgumentError, argument_names
from tinyres_gpu.plan import forward
from tinyres_gpu.plan.__main__ import main
from tinyres_gpu.plan.choices import Choices, Hardware
from tinyres_gpu.plan.compile import compile_step, why_not
from tinyres_gpu.plan.emit import Emitter
from tinyres_gpu.plan.fold import FINISHING
from tinyres_gpu.plan.forward import Pixels
from tinyres_gpu.plan.launches import Buffer, Gathered, Launch, Plan, PlanFault, Table, Updated, Written, verify
from tinyres_gpu.plan.layout import from_gpu_layout, to_gpu_layout
from tinyres_gpu.plan.price.composed import composed_launches
from tinyres_gpu.plan.price.roofline import cost, get_card
from tinyres_gpu.plan.storage import get_storage

GB = 1e9


def small(name="the default", **options):
    return compile_step(build(name), GROUPED, IMAGES, size=SIZE, **options)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pixels", [None, Pixels(10, *SIZE)], ids=["images", "data set"])
def test_plans_are_sound(name, pixels):
    plan = small(name, pixels=pixels)
    verify(plan)
    written = {buffer.name for launch in plan.launches for buffer in launch.writes}
    trained = build(name).parameter_shapes
    assert {f"gradient.{parameter}" for parameter in trained} <= written  # every gradient is computed
    assert set(trained) <= written  # and every parameter moves
    assert {f"{bn}.running_mean" for bn in build(name).batch_norms} <= written


@require_compiler
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ["the default", "original with option B"])
def test_a_plan_says_what_its_kernels_write(name, fold, precision):
    """By the kernels' own signatures: a pointer to what is not const is written."""
    for launch in small(name, precision=precision, pixels=Pixels(10, *SIZE), fold=fold).launches:
        signature = EMULATED.kernel(launch.kernel).signature
        assert len(signature) == len(launch.arguments), launch.kernel
        for argument, kind in zip(launch.arguments.values(), signature, strict=True):
            if isinstance(argument, Written | Updated | Gathered):
                assert kind[0] == "w", launch
            elif isinstance(argument, Buffer):
                assert kind[0] == "r", launch
            elif isinstance(argument, Table):
                assert all(8 * len(row) == int(kind[1:]) for row in argument.rows), launch
            elif argument is None:
                assert kind[0] in "rw", launch
            elif isinstance(argument, int | float):
                assert kind == "v4", launch


def test_what_has_no_plan_says_why():
    for description, why in {
        "unit: relu-only-preactivation": "units",
        "unit: bn-after-addition": "units",
        "shortcut: scaling": "shortcut",
        "shortcut: exclusive-gating": "shortcut",
        "shortcut: conv": "not activated",
        "share_with_option_a: False": "not activated",
        "block: single": "one layer",
    }.items():
        key, value = description.split(": ")
        depth = 5 if value == "single" else 14
        network = build_network(depth, **{key: value if value != "False" else False})
        assert why in why_not(network)
        with pytest.raises(ValueError, match=why):
            compile_step(network, PAPER, 4)
    assert "classes" in why_not(build_network(8, classes=2000))
    assert "4 must divide" in why_not(build_network(8), (32, 30))
    assert not any(why_not(build(name)) for name in NETWORKS)


@pytest.mark.parametrize(
    ("depth", "launches", "folded", "gigabytes", "arena"),
    [(110, 561, 343, 6.10, 0.59), (164, 842, 552, 17.69, 1.64)],
)
def test_what_the_headline_networks_cost(depth, launches, folded, gigabytes, arena):
    network = build_network(depth)
    plan = compile_step(network, PAPER, 128, precision="tf32", pixels=Pixels())
    apart = compile_step(network, PAPER, 128, precision="tf32", pixels=Pixels(), fold=False)
    verify(plan)
    verify(apart)
    assert len(apart.launches) == launches
    assert len(plan.launches) == folded
    finishing = [launch for launch in plan.launches if launch.kind == FINISHING]
    assert launches - folded == 2 * len(network.batch_norms) - len(finishing)
    assert all(
        launch.arguments["partial"].shape[2] >= 64 for launch in finishing
    )  # many tiles of many channels
    assert sum(launch.bytes for launch in plan.launches) / GB == pytest.approx(gigabytes, abs=0.005)
    assert plan.placement.size / GB == pytest.approx(arena, abs=0.005)
    convolved = 128 * (3 * multiply_adds(network) - 16 * 27 * 32 * 32)  # no gradient goes back to the images
    assert sum(launch.multiply_adds for launch in plan.launches) == convolved


def test_1001_layers_at_a_mini_batch_of_128_fit_a_card_of_16_gigabytes():
    plan = compile_step(build_network(1001), PAPER, 128, pixels=Pixels())
    verify(plan)
    permanent = sum(buffer.nbytes for buffer in plan.permanent)
    assert plan.placement.size + permanent < 0.8 * 16 * GB


def test_the_ladder_stands_on_what_the_composed_step_launches():
    """Both multiply the same numbers; the composed one brings a gradient back to the images, too."""
    network = build_network(20)
    composed = composed_launches(network, PAPER, 128, "tf32")
    plan = compile_step(network, PAPER, 128, precision="tf32", pixels=Pixels())
    stem = 128 * 32 * 32 * 16 * 27
    linear = 3 * 128 * 64 * 10
    assert (
        sum(launch.multiply_adds for launch in composed)
        == sum(launch.multiply_adds for launch in plan.launches) + stem - linear
    )
    names = [re.split("<", launch.kernel)[0] for launch in composed]
    assert names.count("conv_tensor_core") == 2 * 19
    assert names.count("bn_moments") == names.count("bn_sums") == 19
    card = get_card("h100", "tf32")
    assert cost(plan.launches, card).seconds < cost(composed, card).seconds


def test_time_is_bytes_or_arithmetic_whichever_is_longer():
    card = get_card("h100", "bf16", 1e12)
    moved = Launch(
        "copy", "copies", (1,), {"x": Buffer("x", (250_000,)), "y": Written(Buffer("y", (250_000,)))}
    )
    assert card.floor(moved) == pytest.approx(2e-6)
    assert card.floor(replace(moved, multiply_adds=300 * 10**6, channels=16)) == pytest.approx(4e-6)
    assert card.floor(replace(moved, multiply_adds=300 * 10**6, channels=64)) == pytest.approx(2e-6)


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (32, 16, 1, 1), (10, 64), (7,)], ids=str)
def test_parameters_come_back_as_they_went(shape):
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    back = from_gpu_layout(to_gpu_layout(value), shape)
    np.testing.assert_array_equal(back, value)
    assert back.flags.c_contiguous


# ---- The command


def test_the_command_prints_the_step(capsys):
    main(["--depth", "20", "--precision", "bf16", "--card", "h200", "--iterations", "1000"])
    text = capsys.readouterr().out
    for words in (
        "convolutions",
        "weight gradients",
        "fused, replayed as a graph",
        "minutes for 1,000",
        "memory",
    ):
        assert words in text
    assert "4.3 TB/s" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--depth 12", "no network has depth 12"),
        ("--unit relu-only-preactivation", "no plan for relu-only-preactivation units"),
        ("--card gtx980", "no card 'gtx980'"),
        ("--bandwidth -1", "more than 0"),
        ("--bandwidth nan", "more than 0"),
        ("--precision fp8", "no plan computes in fp8"),
        ("--stream fp8", "no stream of 'fp8'"),
        ("--precision tf32 --stream bf16", "use --precision bf16"),
        ("--batch-size 0", "--batch-size must be at least 1"),
        ("--recipe ours", "no recipe 'ours'"),
        ("--speed 1", "unrecognized arguments"),
    ],
)
def test_bad_flags_get_one_sentence(flags, words):
    with pytest.raises(ValueError, match=words) as caught:
        main(flags.split())
    assert "\n" not in str(caught.value)


# ---- Damaged plans


def damage(plan, number, **changes):
    launches = list(plan.launches)
    launches[number] = replace(launches[number], **changes)
    return replace(plan, launches=tuple(launches))


def find(plan, kernel, which=0):
    return [i for i, launch in enumerate(plan.launches) if launch.kernel.startswith(kernel)][which]


def test_buffers_that_share_memory_are_refused():
    plan = small()
    x, y = "conv1.y", "stage1.0.branch.conv1.y"  # both are kept for the backward pass
    plan.placement.offsets[x] = plan.placement.offsets[y]
    with pytest.raises(AssertionError, match="share memory"):
        verify(plan)


def test_a_launch_too_few_is_refused():
    """Nobody then has written what a later one reads: moments, sums, a gradient."""
    plan = small("bottlenecks")
    for number, launch in enumerate(plan.launches):
        if not any(not buffer.permanent for buffer in launch.writes):
            continue
        launches = plan.launches[:number] + plan.launches[number + 1 :]
        with pytest.raises(PlanFault, match="before it is written"):
            verify(Plan(plan.batch_size, plan.precision, launches, plan.inputs))


def test_a_launch_of_nothing_is_refused():
    plan = small()
    number = find(plan, "sum_splits")
    with pytest.raises(PlanFault, match="sum_splits, has no blocks"):
        verify(damage(plan, number, grid=(0,)))


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_a_plan_adds_up_splits_only_where_there_are_any(depth):
    """Even if the last weight gradient is added up as soon as it is there."""
    plan = compile_step(build_network(depth), GROUPED, IMAGES, choices=Choices(Hardware(132, l2=2)))
    verify(plan)
    kernels = [launch.kernel for launch in plan.launches]
    assert kernels.count("sum_splits") == sum(kernel.startswith("fused_weight") for kernel in kernels)


def test_launches_in_the_wrong_order_are_refused():
    plan = small()
    number = find(plan, "fused_data_gradient")
    launches = list(plan.launches)
    launches[number], launches[number + 1] = launches[number + 1], launches[number]
    with pytest.raises(PlanFault, match="before it is written"):
        verify(replace(plan, launches=tuple(launches)))


def test_reading_what_the_same_launch_fills_is_refused():
    """A data gradient that is kept where it is read: other blocks may read it after it was changed."""
    plan = small("two units a stage")
    number = next(
        i
        for i, launch in enumerate(plan.launches)
        if launch.kind == "data gradients" and launch.arguments["base"]
    )
    arguments = plan.launches[number].arguments
    with pytest.raises(PlanFault, match="reads and fills"):
        verify(damage(plan, number, arguments={**arguments, "kept": Written(arguments["base"])}))


# ---- Arguments, which are given by name


CLASSIFY = (
    "pooled",
    "w",
    "b",
    "labels",
    "dlogits",
    "dpooled",
    "loss_and_error",
    "classes",
    "channels",
    "share",
)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (CLASSIFY[:-1], "the kernel classify misses share."),
        ((*CLASSIFY, "stride"), "the kernel classify has no argument stride."),
        ((*CLASSIFY[:-1], "shear"), "the kernel classify misses share, and has no argument shear."),
        ((), f"the kernel classify misses {', '.join(CLASSIFY)}."),
    ],
    ids=["missing", "one too many", "misspelt", "none"],
)
def test_arguments_that_the_kernel_has_not_are_refused_when_the_plan_is_compiled(names, sentence):
    emit = Emitter(IMAGES, 2, "float32", get_storage("float32"), GROUPED, Choices())
    with pytest.raises(ArgumentError) as caught:
        emit.launch("classify", "head", (1,), dict.fromkeys(names, 1))
    assert str(caught.value) == sentence


def test_a_misspelt_argument_stops_the_compiling_of_a_whole_plan(monkeypatch):
    right = forward.convolution_sizes
    wrong = lambda *of: {"hight" if name == "height" else name: size for name, size in right(*of).items()}  # noqa: E731
    monkeypatch.setattr(forward, "convolution_sizes", wrong)
    with pytest.raises(
        ArgumentError, match=r"fused_conv<16, Float32> misses height, and has no argument hight\.$"
    ):
        small()


def test_arguments_reach_the_kernel_in_the_order_of_its_source():
    emit = Emitter(IMAGES, 2, "float32", get_storage("float32"), GROUPED, Choices())
    emit.launch("classify", "head", (1,), {name: CLASSIFY.index(name) for name in sorted(CLASSIFY)})
    assert list(emit.launches[0].arguments.values()) == list(range(len(CLASSIFY)))
    plan = small()
    arguments = dict(reversed(plan.launches[1].arguments.items()))
    with pytest.raises(PlanFault, match="not in the order"):
        verify(damage(plan, 1, arguments=arguments))


@require_compiler
def test_every_kernels_arguments_are_as_many_as_the_compiler_counts():
    for kernels in KERNELS.values():
        for name in kernels:
            assert len(argument_names(name)) == len(EMULATED.kernel(name).signature), name


# ---- Plans with a wrong argument


def exchanged(plan, number, **arguments):
    assert arguments.keys() <= plan.launches[number].arguments.keys()
    return number, {**plan.launches[number].arguments, **arguments}


def stale_moments(plan):
    """The second convolution normalises by the moments of the first one's input."""
    first, second = (find(plan, "fused_conv", which) for which in (1, 2))
    return exchanged(plan, second, norm=plan.launches[first].arguments["norm"])


def no_shortcut(plan):
    return exchanged(plan, find(plan, "fused_conv", 2), shortcut=None)


def gradient_without_the_shortcuts(plan):
    """Eq. (5) without its "1 +"."""
    number = next(
        i
        for i, launch in enumerate(plan.launches)
        if launch.kind == "data gradients" and launch.arguments["base"] and launch.arguments["dz"]
    )
    return exchanged(plan, number, base=None)


def one_group(plan):
    """A convolution takes the whole mini-batch for one group."""
    number = find(plan, "fused_conv", 2)
    assert plan.launches[number].arguments["images_per_group"] == IMAGES // 2
    return exchanged(plan, number, images_per_group=IMAGES)


def moments_of_the_wrong_count(plan):
    """The last tile is not as full as its convolution takes it to be."""
    number = find(plan, "fused_conv", 1)
    (row,) = plan.launches[number].arguments["to_finish"].rows
    return exchanged(plan, number, to_finish=Table(((*row[:8], row[8] - 1, *row[9:]),)))


def moments_of_one_group(plan):
    number = find(plan, "fused_conv", 1)
    (row,) = plan.launches[number].arguments["to_finish"].rows
    return exchanged(plan, number, to_finish=Table(((*row[:5], 1, *row[6:]),)))


@require_compiler
@pytest.mark.parametrize(
    "fault",
    [
        stale_moments,
        no_shortcut,
        gradient_without_the_shortcuts,
        one_group,
        moments_of_the_wrong_count,
        moments_of_one_group,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_plan_with_a_wrong_argument_computes_something_else(fault, monkeypatch):
    """So the comparisons of whole steps would notice; the unchanged plan beside it is what they hold."""
    network = build("two units a stage")
    right = planned(network)
    right(0)
    plan = compile_step(network, GROUPED, IMAGES, size=SIZE)
    number, arguments = fault(plan)
    wrong = planned(network)
    monkeypatch.setattr(wrong, "plan", lambda *_: damage(plan, number, arguments=arguments))
    wrong(0)
    exact, found = gradients_of(right), gradients_of(wrong)
    assert not all(np.abs(found[name] - x).max() <= 1e-3 * np.abs(x).max() for name, x in exact.items())
