"""The chapter on the GPU's training step shows what the roofline says of today's plans."""

from pathlib import Path

from tinyres.networks import build_network
from tinyres.recipes import PAPER
from tinyres_gpu.plan.__main__ import main
from tinyres_gpu.plan.choices import Choices
from tinyres_gpu.plan.compile import compile_step
from tinyres_gpu.plan.forward import Pixels
from tinyres_gpu.plan.price.composed import composed_launches
from tinyres_gpu.plan.price.roofline import cost, get_card

CHAPTER = Path(__file__).parents[2] / "docs" / "gpu_step.md"
DEPTHS = (110, 164, 1001)


def rows():
    """Return the lines of the chapter's table: launches, gigabytes and milliseconds for each depth."""
    networks = [build_network(depth) for depth in DEPTHS]

    def planned(network, precision, merge=False, **options):
        options |= {"precision": precision, "pixels": Pixels(), "choices": Choices(merge=merge)}
        return cost(compile_step(network, PAPER, 128, **options).launches, get_card("h100", precision))

    pairs = [cost(composed_launches(n, PAPER, 128, "tf32"), get_card("h100", "tf32")) for n in networks]
    apart = [planned(n, "tf32", fold=False) for n in networks]
    folded, branches, merged, stream = (
        [planned(n, *how, stream_format=stream) for n in networks]
        for *how, stream in (
            ("tf32", "float32"),
            ("bf16", "float32"),
            ("bf16", True, "float32"),
            ("bf16", True, "fp16"),
        )
    )
    return [
        _row("0. pairs, launched one by one, TF32", pairs, [one.one_by_one for one in pairs]),
        _row("1. fused kernels, launched one by one", apart, [one.one_by_one for one in apart]),
        _row("2. the same, replayed as a graph", apart, [one.seconds for one in apart]),
        _row("3. the last block finishes", folded, [one.seconds for one in folded]),
        _row("4. bfloat16 products and branches", branches, [one.seconds for one in branches]),
        _row("5. both gradients in one launch", merged, [one.seconds for one in merged]),
        _row("6. a float16 stream", stream, [one.seconds for one in stream]),
    ]


def _row(name, costs, seconds):
    cells = [
        f"{one.launches:,}, {one.bytes / 1e9:.1f} GB, {1e3 * s:.1f} ms"
        for one, s in zip(costs, seconds, strict=True)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def test_the_ladder_of_the_chapter_is_todays():
    text = CHAPTER.read_text(encoding="utf-8")
    for row in rows():
        assert row in text


def test_the_commands_output_in_the_chapter_is_todays(capsys):
    main(["--depth", "110", "--precision", "bf16"])
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    text = CHAPTER.read_text(encoding="utf-8")
    assert "\n".join(printed).rstrip() in text
