"""The CuPy backend against the reference: pairs, units, steps, data, evaluation, whole runs."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tests.gpu.stand_in import TRANSFERS, CUDARuntimeError, OutOfMemoryError
from tests.kernels.tools import require_compiler
from tests.test_backends import assert_within_factor_two
from tests.toy_run import toy_data
from tinyres.backend import Job, get_backend
from tinyres.chain import Pass, chain_backward, chain_forward
from tinyres.checks.cases import CELLS, PAIRS, Draw
from tinyres.checks.catalogue import check_catalogue
from tinyres.checks.hosted import hosted, hosted_pair, to_device, to_host
from tinyres.data import Batches
from tinyres.errors import UserError
from tinyres.init import initialise
from tinyres.lab.measure import measure
from tinyres.networks import build_network
from tinyres.propagation import record
from tinyres.recipes import PAPER, TORCH_PORT
from tinyres.step import dropout_masks
from tinyres.training.checkpoint import checkpoint_path, load_checkpoint
from tinyres.training.config import Config
from tinyres.training.evaluate import evaluate, recompute_statistics
from tinyres.training.train import train
from tinyres_gpu import KERNEL_TENSORS, TEXTBOOK_TENSORS
from tinyres_gpu.device import driver_version
from tinyres_gpu.kernels.pairs.step import KernelStep

REFERENCE = get_backend("reference")


def picker(seed: int):
    rng = np.random.default_rng(seed)
    return lambda low, high: int(rng.integers(low, high, endpoint=True))


def assert_close(ours, exact, tolerance: float) -> None:
    """Demand a maximum error of a share of the largest value, for each array of two dicts or tuples."""
    if isinstance(exact, dict):
        assert ours.keys() == exact.keys()
        ours, exact = tuple(ours[name] for name in exact), tuple(exact.values())
    for a, b in zip(ours, exact, strict=True):
        if b is None:
            assert a is None
            continue
        assert np.shape(a) == np.shape(b)
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1.0, np.abs(b).max(initial=0))


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair(name, backend) -> None:
    for seed in range(3):
        textbook, draw_case = PAIRS[name]
        case = draw_case(Draw(picker(seed)))
        host = hosted(backend)
        pair = host.merges.get(name) or host.layers.get(name) or hosted_pair(textbook, backend)
        *ours, cache = pair.forward(*case.arguments, **case.options)
        *exact, exact_cache = textbook.forward(*case.arguments, **case.options)
        assert_close(ours, exact, 1e-12)
        rng = np.random.default_rng(seed)
        chosen = range(len(exact)) if case.outputs is None else case.outputs
        cotangents = [rng.standard_normal(np.shape(exact[i])) for i in chosen]
        gradients = pair.backward(*cotangents, cache), textbook.backward(*cotangents, exact_cache)
        gradients = [g if isinstance(g, tuple) else (g,) for g in gradients]
        assert_close(*gradients, 1e-12)


@pytest.mark.parametrize("name", ["conv", "bn_relu_conv"])
def test_float32_is_as_exact_as_numpy(name, backend) -> None:
    rng = np.random.default_rng(0)
    shapes = [(8, 16, 12, 12), (32, 16, 3, 3)]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    if name == "bn_relu_conv":
        arrays[1:1] = [rng.uniform(0.5, 2, 16), rng.standard_normal(16)]
    dy = rng.standard_normal((8, 32, 12, 12))
    textbook = PAIRS[name][0]

    def run(pair, dtype):
        *outputs, cache = pair.forward(*(a.astype(dtype) for a in arrays))
        return [x for x in (*outputs, *pair.backward(dy.astype(dtype), cache)) if x is not None]

    ours = run(hosted(backend).layers[name], np.float32)
    assert_within_factor_two(ours, run(textbook, np.float32), run(textbook, np.float64))


# Every unit with every block, every shortcut with some of them: all 90 would take minutes.
@pytest.mark.parametrize("cell", [cell for i, cell in enumerate(CELLS) if (i + i // 6) % 6 == 0], ids=" ".join)
def test_every_variant_stays_on_the_device_and_agrees(cell, backend) -> None:
    unit, block, shortcut = cell
    depth = {"single": 8, "basic": 8, "bottleneck": 11}[block]
    network = build_network(depth, unit=unit, block=block, shortcut=shortcut, shortcut_scale=0.5)
    rng = np.random.default_rng(0)
    state = initialise(network, PAPER, 0, gate_bias=-1.0, dtype=np.float64)
    x = rng.standard_normal((2, 3, 8, 8))
    masks = dropout_masks(network, x.shape, 0, 0, np)
    device_masks = dropout_masks(network, x.shape, 0, 0, backend.xp)
    assert all(np.array_equal(mask, masks[name]) for name, mask in to_host(device_masks, backend).items())
    logits, _, cache = chain_forward(Pass(REFERENCE, state, 2, masks=masks), network.layers, x)
    dlogits = rng.standard_normal(logits.shape)
    dx, gradients = chain_backward(REFERENCE, network.layers, dlogits, cache)

    run = Pass(backend, to_device(state, backend), 2, masks=device_masks)
    device_x, device_dlogits = to_device((x, dlogits), backend)
    TRANSFERS.clear()
    ours, _, device_cache = chain_forward(run, network.layers, device_x)
    device_dx, device_gradients = chain_backward(backend, network.layers, device_dlogits, device_cache)
    assert not TRANSFERS
    assert_close(to_host((ours, device_dx), backend), (logits, dx), 1e-10)
    assert_close(to_host(device_gradients, backend), gradients, 1e-10)


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT], ids=lambda recipe: recipe.name)
def test_mini_batches_are_the_same_bits(recipe, cupy) -> None:
    training, _ = toy_data()
    options = {"seed": 3, "batch_size": 16, "dtype": np.float32}
    ours, plain = Batches(training, recipe, xp=cupy, **options), Batches(training, recipe, **options)
    assert ours.images.dtype == np.uint8
    for t in range(6):  # over the end of a pass
        for device, host in zip(ours(t), plain(t), strict=True):
            assert isinstance(device, cupy.ndarray)
            np.testing.assert_array_equal(device.get(), host)
    np.testing.assert_array_equal(ours.normalise(training.images).get(), plain.normalise(training.images))


def make_steps(backend, network, *, batch_size: int, dtype, iterations: int = 20, recipe=PAPER):
    training, _ = toy_data()
    state = initialise(network, recipe, 0, dtype=dtype)
    steps = []
    for one in (backend, REFERENCE):
        batches = Batches(training, recipe, seed=0, batch_size=batch_size, dtype=dtype, xp=one.xp)
        steps.append(
            one.make_step(Job(network, recipe, batches, state, iterations=iterations, dtype=dtype, seed=0))
        )
    return steps


@pytest.mark.parametrize("recipe", [PAPER, TORCH_PORT], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("shortcut", ["identity", "dropout", "exclusive-gating"])
def test_twenty_iterations(shortcut, recipe, backend) -> None:
    network = build_network(5, block="single", shortcut=shortcut)
    ours, plain = make_steps(backend, network, batch_size=4, dtype=np.float64, recipe=recipe)
    for t in range(20):
        (loss, errors), (exact_loss, exact_errors) = ours(t), plain(t)
        assert loss == pytest.approx(exact_loss, rel=1e-8)
        assert errors == exact_errors
    assert_close(ours.state(), plain.state(), 1e-7)


def test_a_step_crosses_to_the_host_for_two_numbers_only(fake) -> None:
    ours, _ = make_steps(get_backend("cupy-reference"), build_network(8), batch_size=4, dtype=np.float32)
    TRANSFERS.clear()
    ours(0)
    assert TRANSFERS.count("to host") == 2  # loss and errors
    assert TRANSFERS.count("to device") == 4  # which images, two offsets, which are flipped


def test_loading_a_state_is_in_place(backend) -> None:
    ours, plain = make_steps(backend, build_network(8), batch_size=4, dtype=np.float32)
    plain(0)
    before = dict(ours.buffers)
    ours.load(plain.state())
    assert all(ours.buffers[name] is array for name, array in before.items())
    assert_close(ours.state(), plain.state(), 0)
    assert all(array.flags.c_contiguous for array in ours.state().values())


def test_evaluation_and_statistics(backend) -> None:
    training, test = toy_data()
    network = build_network(8)
    state = initialise(network, PAPER, 0, dtype=np.float64)
    results = []
    for one in (backend, REFERENCE):
        batches = Batches(training, PAPER, seed=0, batch_size=16, dtype=np.float64, xp=one.xp)
        common = one, network
        fresh = recompute_statistics(*common, state, training, batches.normalise, PAPER, batch_size=16)
        found = evaluate(*common, fresh, test, batches.normalise, batch_size=5)
        results.append((fresh, found))
    (ours, found), (plain, exact) = results
    assert_close(ours, plain, 1e-10)
    assert isinstance(found.logits, np.ndarray)
    assert_close((found.logits,), (exact.logits,), 1e-10)
    assert (found.error, found.loss) == (exact.error, pytest.approx(exact.loss))


@pytest.mark.parametrize("first", ["reference", "cupy"])
def test_a_run_begun_on_one_backend_goes_on_on_the_other(first, cupy, tmp_path, capsys) -> None:
    whole = Config(
        dataset="toy",
        depth=5,
        block="single",
        iterations=6,
        batch_size=8,
        backend="reference",
        precision="float64",
        eval_every=3,
        checkpoint_every=2,
    )
    data = toy_data()
    exact = train(whole, tmp_path / "whole", quiet=True, data=data)

    class Stop(Exception):
        pass

    def interrupt(step, t) -> None:
        if t == 4:
            raise Stop

    second = {"reference": "cupy", "cupy": "reference"}[first]
    stopping = get_backend(first, whole.precision)
    calls = stopping.step.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping.step, "__call__", lambda step, t: interrupt(step, t) or calls(step, t))
        with pytest.raises(Stop):
            train(replace(whole, backend=first), tmp_path / "run", quiet=True, data=data)
    result = train(replace(whole, backend=second), tmp_path / "run", resume=True, quiet=True, data=data)
    assert "backend" in capsys.readouterr().err
    assert result["backend"] == second
    assert result["test_loss"] == pytest.approx(exact["test_loss"], rel=1e-7)
    how = json.loads((tmp_path / "run" / "config.json").read_text())["how"]
    assert how["backend"] == second
    assert (how["pairs"], how["device"]) == ("textbook", get_backend(second, "float64").device)


def test_the_propagation_lab(backend) -> None:
    network = build_network(14, shortcut="scaling", shortcut_scale=0.5)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 3, 8, 8)), rng.integers(0, 10, 4)
    state = initialise(network, PAPER, 0, dtype=np.float64)
    rows = []
    for one in (backend, REFERENCE):
        run = Pass(one, to_device(state, one))
        rows.append(measure(record(run, network, *to_device((images, labels), one))))
    for ours, plain in zip(*rows, strict=True):
        for a, b in zip(ours, plain, strict=True):
            assert a == b or a == pytest.approx(b, rel=1e-6, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("only", ["bn_relu_conv", "unit: preactivation, basic, identity"])
def test_the_gradient_checker(only, cupy) -> None:
    rows = check_catalogue(2, only=only, backend="cupy")
    assert rows
    assert not [row.failure for row in rows if row.failure]


# What is missing, in one sentence


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        get_backend("cupy")
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def failing(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("status", "driver", "words"),
    [
        (35, 0, "there is no NVIDIA driver"),
        (35, 12040, "serves CUDA up to 12.4 and this CuPy needs 13.0: update the driver, or install"),
        (100, 13000, "finds no NVIDIA GPU"),
        (2, 13000, "no memory left"),
        (999, 13000, "nvidia-smi"),
    ],
)
def test_what_cuda_lacks(status, driver, words, fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "ones", failing(CUDARuntimeError(status)), raising=False)
    monkeypatch.setattr(fake.cuda.runtime, "driverGetVersion", lambda: driver)
    assert words in refusal()


def test_a_library_that_is_missing(fake, monkeypatch) -> None:
    error = RuntimeError("CuPy failed to load libnvrtc.so.13:\n OSError: no such file\n======")
    monkeypatch.setattr(fake, "ones", failing(error), raising=False)
    assert "failed to load libnvrtc.so.13: OSError: no such file): pip install" in refusal()


def test_a_card_that_miscalculates(fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "ones", fake.zeros, raising=False)
    assert "broken" in refusal()


def test_too_little_memory_says_what_would_fit(fake, monkeypatch) -> None:
    network = build_network(20)
    ours, _ = make_steps(get_backend("cupy-reference"), network, batch_size=16, dtype=np.float32)
    monkeypatch.setattr(fake, "tensordot", failing(OutOfMemoryError()), raising=False)
    fake.cuda.runtime.memGetInfo = lambda: (20 << 20, 20 << 20)
    with pytest.raises(UserError, match=r"of ResNet-20, .* mini-batches of 16: .*-size 10\.$"):
        ours(0)
    fake.cuda.runtime.memGetInfo = lambda: (1 << 20, 1 << 20)
    with pytest.raises(UserError, match="not even a single image"):
        ours(0)


@pytest.mark.skipif(os.environ.get("CUDA_VISIBLE_DEVICES") == "", reason="no GPU is wanted")
@pytest.mark.gpu
def test_the_real_thing_is_there() -> None:
    from tests.gpu.conftest import real_cupy

    assert real_cupy().cuda.runtime.getDeviceProperties(0)["name"]


@pytest.mark.parametrize("depth", [20, 29])
def test_the_estimate_of_a_steps_memory_is_from_above_and_not_far_off(depth, fake) -> None:
    network = build_network(depth)
    ours, _ = make_steps(get_backend("cupy-reference"), network, batch_size=8, dtype=np.float32)
    ours(0)
    tracemalloc.start()
    ours(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    estimate = ours.need(8).total(TEXTBOOK_TENSORS)
    assert 0.5 * estimate <= peak <= estimate


# Our own kernels


def toy_config(**changes) -> Config:
    config = Config(dataset="toy", depth=8, iterations=4, batch_size=2, backend="cupy")
    return replace(config, **{"eval_every": 4, "checkpoint_every": 2} | changes)


def test_each_precision_has_its_pairs_and_says_which(fake) -> None:
    for precision in ("float32", "tf32", "bf16"):
        ours = get_backend("cupy", precision)
        assert (ours.name, ours.pairs, ours.layers["conv"].forward.__self__.precision) == (
            "cupy",
            "kernels",
            precision,
        )
        assert ours.device == "a stand-in, driver unknown (CUDA 13.0), CuPy 14.2.0"
    assert get_backend("cupy", "float64").pairs == get_backend("cupy-reference").pairs == "textbook"
    assert get_backend("cupy", "float64").layers["conv"] is REFERENCE.layers["conv"]


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("numpy", "bf16", "numpy backend does not compute in bf16: choose one of .*, or --backend cupy"),
        ("reference", "tf32", "reference backend does not compute in tf32"),
        ("cupy-reference", "bf16", "cupy-reference backend does not compute in bf16"),
        ("cupy", "fp8", "does not compute in fp8: choose one of float32, tf32, bf16, float64"),
    ],
)
def test_a_precision_that_is_not_the_backends_is_refused(name, precision, words, fake) -> None:
    with pytest.raises(UserError, match=words):
        get_backend(name, precision)


def test_a_card_that_is_too_old_for_a_precision_is_refused(fake) -> None:
    card = fake.cuda.runtime.getDeviceProperties(0)
    card |= {"major": 7, "minor": 5}
    with pytest.raises(UserError, match=r"bf16 needs compute capability 8\.0 and .* 7\.5: use float32"):
        train(toy_config(precision="bf16"), "nowhere", data=toy_data())
    assert get_backend("cupy", "float32").pairs == "kernels"
    card |= {"major": 6, "minor": 1}
    get_backend.cache_clear()
    with pytest.raises(UserError, match="use --backend cupy-reference"):
        get_backend("cupy")
    assert get_backend("cupy", "float64").pairs == "textbook"


def test_float64_arrays_do_not_get_into_the_kernels(kernels) -> None:
    x = kernels.xp.zeros((1, 3, 4, 4), np.float64)
    with pytest.raises(UserError, match="the kernels compute in float32, not float64"):
        kernels.layers["relu"].forward(x)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_with_our_kernels(precision, kernels, tmp_path, capsys) -> None:
    """It learns what NumPy learns, records how, and goes on in another precision."""
    if precision == "bf16" and kernels.xp.cuda.runtime.getDeviceProperties(0)["major"] < 8:
        pytest.skip("this card has no bfloat16")
    training, test = toy_data()
    data = training, replace(test, images=test.images[:3], labels=test.labels[:3])
    exact = train(toy_config(backend="reference"), tmp_path / "exact", quiet=True, data=data)
    result = train(toy_config(precision=precision), tmp_path / "run", quiet=True, data=data)
    tolerance = {"float32": 1e-4, "bf16": 5e-2}[precision]
    assert result["test_loss"] == pytest.approx(exact["test_loss"], rel=tolerance)
    assert result["step"] == "planned"
    recorded = {"backend": "cupy", "precision": precision, "pairs": "kernels", "device": kernels.device}
    how = json.loads((tmp_path / "run" / "config.json").read_text())["how"]
    assert recorded.items() <= how.items()
    assert recorded.items() <= result.items()
    assert load_checkpoint(checkpoint_path(tmp_path / "run", 4)).state["conv1.weight"].dtype == np.float32

    (tmp_path / "run" / "result.json").unlink()
    again = toy_config(precision="float64")
    train(again, tmp_path / "run", resume=True, quiet=True, data=data)
    told = capsys.readouterr().err
    assert f"precision ({precision} there, float64 here)" in told
    assert "pairs (kernels there, textbook here)" in told


@pytest.mark.parametrize("cell", [("preactivation", "basic", "dropout"), ("original", "bottleneck", "conv")])
def test_kernels_stay_on_the_device(cell, kernels) -> None:
    unit, block, shortcut = cell
    network = build_network({"basic": 8, "bottleneck": 11}[block], unit=unit, block=block, shortcut=shortcut)
    state = to_device(initialise(network, PAPER, 0), kernels)
    x = kernels.xp.asarray(np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    masks = dropout_masks(network, x.shape, 0, 0, kernels.xp)
    TRANSFERS.clear()
    logits, _, cache = chain_forward(Pass(kernels, state, 2, masks=masks), network.layers, x)
    chain_backward(kernels, network.layers, logits, cache)
    assert not TRANSFERS


def composed_kernels():
    """Return the backend with the step that composes its pairs, for whatever network."""
    return replace(get_backend("cupy"), step=KernelStep)


@require_compiler
def test_a_composed_step_of_kernels_uploads_two_arrays_more(fake) -> None:
    ours, _ = make_steps(composed_kernels(), build_network(8), batch_size=4, dtype=np.float32)
    ours(0)
    TRANSFERS.clear()
    ours(1)
    assert TRANSFERS.count("to host") == 2
    assert TRANSFERS.count("to device") == 4 + 2  # where the gradients lie, and the learning rate


def test_kernels_evaluate_and_open_units_as_the_textbook_does(kernels) -> None:
    training, test = toy_data()
    network = build_network(8, shortcut="scaling", shortcut_scale=0.5)
    state = initialise(network, PAPER, 0)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 3, 8, 8)).astype(np.float32), rng.integers(0, 10, 4)
    results = []
    for one in (kernels, REFERENCE):
        batches = Batches(training, PAPER, seed=0, batch_size=8, xp=one.xp)
        fresh = recompute_statistics(one, network, state, training, batches.normalise, PAPER, batch_size=8)
        found = evaluate(one, network, fresh, test, batches.normalise, batch_size=8)
        run = Pass(one, to_device(state, one))
        results.append((fresh, found, measure(record(run, network, *to_device((images, labels), one)))))
    (ours, found, lab), (plain, exact, exact_lab) = results
    assert_close(ours, plain, 1e-4)
    assert_close((found.logits,), (exact.logits,), 1e-4)
    for measured, expected in zip(lab, exact_lab, strict=True):
        for a, b in zip(measured, expected, strict=True):
            assert a == b or a == pytest.approx(b, rel=1e-3, abs=1e-5, nan_ok=True)


def test_too_little_memory_for_a_composed_step_of_kernels(fake, monkeypatch) -> None:
    ours, _ = make_steps(composed_kernels(), build_network(20), batch_size=16, dtype=np.float32)
    monkeypatch.setattr(fake, "empty", failing(OutOfMemoryError()))
    fake.cuda.runtime.memGetInfo = lambda: (20 << 20, 20 << 20)
    with pytest.raises(UserError, match=r"of ResNet-20, .* mini-batches of 16: .*-size 12\.$"):
        ours(0)


@require_compiler
@pytest.mark.parametrize(
    "options", [{"depth": 20}, {"depth": 29}, {"depth": 8, "shortcut": "exclusive-gating"}]
)
def test_the_estimate_of_a_kernel_steps_memory_is_from_above_and_not_far_off(options, fake) -> None:
    network = build_network(**options)
    ours, _ = make_steps(composed_kernels(), network, batch_size=4, dtype=np.float32)
    ours(0)
    tracemalloc.start()
    ours(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    estimate = ours.need(4).total(KERNEL_TENSORS)
    assert 0.5 * estimate <= peak <= estimate


def test_too_little_memory_for_anything_else(fake, monkeypatch, tmp_path) -> None:
    """The data set, the parameters, and a look at the test set."""
    config, data = toy_config(backend="cupy-reference"), toy_data()
    fake.cuda.runtime.memGetInfo = lambda: (1 << 20, 1 << 20)

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            train(config, tmp_path / "run", resume=True, quiet=True, data=data)
        return str(caught.value)

    with monkeypatch.context() as patch:
        patch.setattr(fake, "asarray", failing(OutOfMemoryError()), raising=False)
        assert "0.0 GiB for the data set, which needs about 0.0 GiB: nvidia-smi" in refusal()
    with monkeypatch.context() as patch:
        patch.setattr(fake, "array", failing(OutOfMemoryError()), raising=False)
        assert "GiB for the parameters of ResNet-8, which needs" in refusal()
    monkeypatch.setattr("tinyres.training.train.score", failing(OutOfMemoryError()))
    assert "GiB for evaluating ResNet-8, which needs about" in refusal()
    fake.cuda.runtime.memGetInfo = lambda: (2 << 20, 2 << 20)
    assert "with mini-batches of 2: try again with --batch-size 1." in refusal()


def test_the_drivers_version(tmp_path) -> None:
    told = tmp_path / "version"
    told.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\nGCC 12.2.0")
    assert driver_version(told) == "580.65.06"
    assert driver_version(tmp_path / "none") == "unknown"
