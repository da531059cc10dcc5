"""Ten training steps of a residual network: forward, backward, update. Each call is a function of the book.

    python demos/one_step.py

A ResNet-8 of full pre-activation units (Fig. 4(e)) learns the labels of eight images of noise by heart.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tinyres beside this folder, installed or not

import numpy as np

from tinyres.backend import get_backend
from tinyres.chain import Pass, chain_backward, chain_forward
from tinyres.init import initialise
from tinyres.layers.head import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from tinyres.networks import build_network
from tinyres.optim import update
from tinyres.recipes import PAPER
from tinyres.system.command_line import CommandLine, exit_with_one_sentence

STEPS, LEARNING_RATE = 10, 0.05


def main() -> None:
    """Take ten steps and print the loss of each."""
    CommandLine(description=__doc__).parse_args()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 3, 32, 32)).astype(np.float32)  # (N, 3, H, W)
    labels = rng.integers(0, 10, 8)  # (N,)

    backend = get_backend("reference")  # the layers of tinyres/layers, one after the other
    network = build_network(8)  # stem, 3 stages of one unit, last activation, pooling, linear layer
    state = initialise(network, PAPER, seed=0)  # parameters, velocities (and running statistics)
    print(f"ResNet-{network.depth}, {network.parameter_count:,} parameters")

    for step in range(STEPS):
        # Forward: logits (N, 10), and for each layer what its backward pass will read.
        run = Pass(backend, state)
        logits, _, caches = chain_forward(run, network.layers, images)
        loss, loss_cache = softmax_cross_entropy_forward(logits, labels)

        # Backward: the gradient of the mean loss, from the last layer to the first.
        dlogits = softmax_cross_entropy_backward(1 / len(labels), loss_cache)
        _, gradients = chain_backward(backend, network.layers, dlogits, caches)

        # Update: momentum and weight decay, in place.
        for name, gradient in gradients.items():
            update(name, state[name], state["optimizer.velocity." + name], gradient, LEARNING_RATE, PAPER)
        print(f"step {step}: loss {loss / len(labels):.4f}")


if __name__ == "__main__":
    exit_with_one_sentence(main)
