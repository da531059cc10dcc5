"""Networks by the paper's names: depths, parameter counts, costs, and what is refused."""

import numpy as np
import pytest

from tinyres.backend import get_backend
from tinyres.chain import Pass, chain_forward
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.networks import LAYERS_PER_UNIT, build_network
from tinyres.recipes import PAPER
from tinyres.shortcuts import FIGURE_2
from tinyres.step import dropout_masks
from tinyres.training.cost import activation_bytes, multiply_adds
from tinyres.units import FIGURE_4

# depth, options, parameters with 10 and with 100 classes
COUNTS = [
    (110, {"option": "A"}, 1_727_962, 1_733_812),
    (110, {"option": "B"}, 1_730_522, 1_736_372),
    (164, {}, 1_703_258, 1_726_388),
    (1001, {}, 10_327_706, 10_350_836),
    (110, {"option": "B", "unit": "original"}, 1_730_714, None),
    (164, {"unit": "original"}, 1_704_154, None),
    (1001, {"unit": "original"}, 10_328_602, None),
]


@pytest.mark.parametrize(("depth", "options", "ten", "hundred"), COUNTS)
def test_parameter_counts(depth, options, ten, hundred):
    network = build_network(depth, **options)
    assert network.parameter_count == ten
    assert sum(int(np.prod(s)) for s in network.parameter_shapes.values()) == ten
    if hundred:
        assert build_network(depth, classes=100, **options).parameter_count == hundred


def test_the_papers_count_of_resnet_1001_leaves_out_batch_norm():
    network = build_network(1001)
    bn = sum(2 * channels for channels in network.batch_norms.values())
    assert network.parameter_count - bn == 10_178_490  # "10.2M"


def test_resnet_1202_has_19_4_million_parameters():
    network = build_network(1202)
    assert network.block == "basic"
    assert round(network.parameter_count / 1e6, 1) == 19.4


@pytest.mark.parametrize(("depth", "millions"), [(110, 252.9), (164, 244.5), (1001, 1487.8)])
def test_multiply_adds(depth, millions):
    assert round(multiply_adds(build_network(depth)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("depth", "block"),
    [
        (8, "basic"),
        (20, "basic"),
        (29, "bottleneck"),
        (56, "basic"),
        (110, "basic"),
        (164, "bottleneck"),
        (1001, "bottleneck"),
        (1202, "basic"),
    ],
)
def test_auto_takes_the_papers_block(depth, block):
    assert build_network(depth).block == block


@pytest.mark.parametrize("block", LAYERS_PER_UNIT)
def test_depth_counts_the_weight_layers_of_the_longest_path(block):
    network = build_network(3 * LAYERS_PER_UNIT[block] * 4 + 2, block=block)
    branches = sum(".branch.conv" in name for name in network.parameter_shapes)
    assert branches + 2 == network.depth
    assert len(network.units) == 12


@pytest.mark.parametrize(
    ("depth", "options", "words"),
    [
        (21, {}, "nearest are 20 and"),
        (2, {}, "nearest are 8 and 11"),
        (-5, {}, "nearest are"),
        (20, {"unit": "preactivated"}, "no unit 'preactivated': choose one of original"),
        (20, {"shortcut": "none"}, "no shortcut 'none'"),
        (20, {"option": "D"}, "no option 'D'"),
        (20, {"shortcut": "conv", "option": "A"}, "option C, not A"),
        (20, {"classes": 1}, "at least 2 classes"),
        (20, {"dropout_rate": 1.0}, "dropout rate"),
        (29, {"stride_on": "2x2"}, "stride position"),
    ],
)
def test_impossible_networks_are_refused_in_one_sentence(depth, options, words):
    with pytest.raises(UserError, match=words) as refusal:
        build_network(depth, **options)
    assert "\n" not in str(refusal.value)


def test_a_depth_that_only_another_block_has_is_refused():
    with pytest.raises(UserError, match=r"9n \+ 2 \(bottleneck units\).*nearest are 20 and 29"):
        build_network(26, block="bottleneck")


def kept_bytes(cache: object) -> int:
    """Return the bytes of the distinct arrays of two images that a cache holds on to."""
    found: dict[int, int] = {}

    def walk(value: object) -> None:
        if isinstance(value, np.ndarray):
            if len(value) == 2:
                found[value.__array_interface__["data"][0]] = value.nbytes
        elif isinstance(value, (list, tuple)):
            for part in value:
                walk(part)

    walk(cache)
    return sum(found.values())


@pytest.mark.parametrize("shortcut", FIGURE_2)
@pytest.mark.parametrize("unit", FIGURE_4)
@pytest.mark.parametrize(("block", "depth"), [("basic", 14), ("bottleneck", 11), ("single", 8)])
def test_activation_bytes_are_what_a_forward_pass_keeps(block, depth, unit, shortcut):
    network = build_network(depth, block=block, unit=unit, shortcut=shortcut)
    state = initialise(network, PAPER, 0)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    masks = dropout_masks(network, x.shape, 0, 0, np)
    _, _, cache = chain_forward(Pass(get_backend("numpy"), state, masks=masks), network.layers, x)
    assert kept_bytes(cache) == activation_bytes(network, 2)
