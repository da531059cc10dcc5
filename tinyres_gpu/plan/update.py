"""The launches around the two passes: weights are packed before them, all parameters move after them."""

from __future__ import annotations

from tinyres.networks import Network
from tinyres.optim import decays
from tinyres_gpu.plan.emit import REST, Emitter, deal_out, gradient, parameter
from tinyres_gpu.plan.launches import Deal, Table, Updated, Written


def pack(emit: Emitter) -> None:
    """Round and arrange the weights that staged convolutions read; this launch comes first."""
    if not emit.packed:
        return
    rows = tuple(  # as Packing in pack.cu
        (weight, Written(forward), Written(backward), layer.kernel_size**2, layer.c_in, layer.c_out)
        for weight, (forward, backward), layer in emit.packed.values()
    )
    numbers, firsts = deal_out(ways[0].size // 2 for _, ways, _ in emit.packed.values())
    emit.launch(
        f"pack_weights<{str(emit.arithmetic == 'Bf16').lower()}>",
        REST,
        (len(numbers),),
        {"packings": Table(rows), "of_block": Deal(numbers), "first_of_block": Deal(firsts)},
    )
    emit.launches.insert(0, emit.launches.pop())


def update(emit: Emitter, network: Network, shapes: dict[str, tuple[int, ...]]) -> None:
    """Move every parameter, in one launch; `shapes` are those on the GPU."""
    rows = []  # as Tensor in update.cu
    for name, shape in shapes.items():
        w, velocity = parameter(name, shape), parameter(f"optimizer.velocity.{name}", shape)
        decay = decays(name, len(network.parameter_shapes[name]), emit.recipe)
        rows.append((Updated(w), Updated(velocity), gradient(w), w.size, int(decay)))
    numbers, firsts = deal_out(w.buffer.size for w, *_ in rows)
    emit.launch(
        f"update<{str(emit.recipe.momentum_form == 'nesterov').lower()}>",
        REST,
        (len(numbers),),
        {
            "tensors": Table(tuple(rows)),
            "tensor_of_block": Deal(numbers),
            "first_of_block": Deal(firsts),
            "learning_rate": emit.learning_rate,
            "momentum": float(emit.recipe.momentum),
            "weight_decay": float(emit.recipe.weight_decay),
        },
    )
