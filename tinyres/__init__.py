"""Identity mappings in deep residual networks, with every forward and backward pass written by hand.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027.

The files that lie here are the book. What a notebook needs has a name here, and is loaded when it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = {
    "build_network": "tinyres.networks",
    "initialise": "tinyres.init",
    "get_backend": "tinyres.backend",
    "record": "tinyres.propagation",
    "check_gradient": "tinyres.gradcheck",
    "load_dataset": "tinyres.data",
    "Config": "tinyres.training.config",
    "train": "tinyres.training.train",
    "evaluate": "tinyres.training.evaluate",
    "describe_network": "tinyres.training.describe",
}
__all__ = [*_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"tinyres has no {name!r}; at hand are {', '.join(_FACE)}.")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_FACE]
