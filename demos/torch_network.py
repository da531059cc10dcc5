"""The same networks in plain torch.nn, to carry weights to PyTorch and back.

Nothing in tinyres needs PyTorch; this file does. It is written from the paper, not from tinyres's tables, so
that the parity tests compare two readings of it. The modules' names make their parameters' names those of a
tinyres checkpoint. What shapes do not show (scales, strides, what a shortcut reads, eps) comes from the network
and from the run's configuration; what neither can say is refused. docs/weights.md shows how to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tinyres.backend import get_backend
from tinyres.data import Batches, Dataset, load_dataset
from tinyres.errors import UserError
from tinyres.networks import STRIDES_ON, Network, build_network
from tinyres.training.checkpoint import load_checkpoint, load_newest_checkpoint
from tinyres.training.config import Config
from tinyres.training.evaluate import recompute_statistics


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose training statistics are taken over each of `groups` equal parts of the mini-batch."""

    groups = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W); running statistics follow the first group."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        first, *others = x.chunk(self.groups)
        parts = [super().forward(first)]
        parts += [F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps) for x in others]
        return torch.cat(parts)


class Branch(nn.Module):
    """F: one to three weight layers, in the order of the unit's drawing in Fig. 4."""

    def __init__(self, unit: str, widths: list[tuple[int, int, int]], c_in: int, adopts: bool) -> None:
        super().__init__()
        self.unit, self.depth, self.adopts = unit, len(widths), adopts
        for k, (width, kernel, stride) in enumerate(widths, 1):
            if unit == "preactivation":
                if not (adopts and k == 1):
                    self.add_module(f"bn{k}", GroupedBatchNorm(c_in))
            elif not (unit == "bn-after-addition" and k == len(widths)):
                self.add_module(f"bn{k}", GroupedBatchNorm(width))
            conv = nn.Conv2d(c_in, width, kernel, stride, kernel // 2, bias=False)
            self.add_module(f"conv{k}", conv)
            c_in = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute F(x)."""
        for k in range(1, self.depth + 1):
            conv = self.get_submodule(f"conv{k}")
            inner = k < self.depth
            if self.unit == "preactivation":
                if not (self.adopts and k == 1):
                    x = F.relu(self.get_submodule(f"bn{k}")(x))
                x = conv(x)
                continue
            if self.unit == "relu-only-preactivation" and k == 1 and not self.adopts:
                x = F.relu(x)
            x = conv(x)
            if self.unit == "bn-after-addition" and not inner:
                return x
            x = self.get_submodule(f"bn{k}")(x)
            if inner or self.unit == "relu-before-addition":
                x = F.relu(x)
        return x


class Shortcut(nn.Module):
    """Option B or C: a 1x1 projection, followed by batch norm where the branch ends in one."""

    def __init__(self, c_in: int, c_out: int, stride: int, bn: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        self.bn = GroupedBatchNorm(c_out) if bn else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project (N, C, H, W)."""
        projected: torch.Tensor = self.bn(self.conv(x))
        return projected


class Before(nn.Module):
    """The activation that a unit's two paths share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = GroupedBatchNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute relu(bn(x))."""
        return F.relu(self.bn(x))


class Unit(nn.Module):
    """A residual unit: any drawing of Fig. 4 with any shortcut of Fig. 2."""

    def __init__(
        self,
        words: Mapping[str, Any],
        widths: list[tuple[int, int, int]],
        c_in: int,
        first: bool,
    ) -> None:
        super().__init__()
        self.kind, self.how, self.words, option = words["unit"], words["shortcut"], words, words["option"]
        self.c_out = c_out = widths[-1][0]
        self.stride = stride = int(np.prod([s for _, _, s in widths]))
        changes = c_in != c_out or stride > 1
        # Whoever projects reads the activated signal, as the branch does; option A may read the raw one.
        shares = first or (changes and (option != "A" or words["share_with_option_a"]))
        adopts = shares and self.kind in ("preactivation", "relu-only-preactivation")
        self.relu_first = adopts and self.kind == "relu-only-preactivation"
        self.before = Before(c_in) if adopts and self.kind == "preactivation" else None
        self.branch = Branch(self.kind, widths, c_in, adopts)
        self.shortcut = None
        if option == "C" or (changes and option == "B"):
            self.shortcut = Shortcut(
                c_in, c_out, stride, self.kind not in ("preactivation", "bn-after-addition")
            )
        self.pads = changes and self.shortcut is None
        self.after = Before(c_out) if self.kind == "bn-after-addition" else None
        self.gate = nn.Conv2d(c_out, c_out, 1) if "gating" in self.how else None
        self.mask: torch.Tensor | None = None  # of a dropout shortcut in training, set from outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute x_{l+1} from x_l."""
        if self.before is not None:
            x = self.before(x)
        elif self.relu_first:
            x = F.relu(x)
        s = x
        if self.shortcut is not None:
            s = self.shortcut(x)
        elif self.pads:
            s = x[:, :, :: self.stride, :: self.stride]
            s = F.pad(s, (0, 0, 0, 0, 0, self.c_out - s.shape[1]))
        y = self.merge(s, self.branch(x))
        if self.kind == "original":
            return F.relu(y)
        return y if self.after is None else self.after(y)

    def merge(self, s: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        """Merge the two paths as Fig. 2 draws it."""
        if self.how == "scaling":
            return self.words["shortcut_scale"] * s + self.words["residual_scale"] * f
        if self.how == "dropout":
            if self.training:
                assert self.mask is not None
                return self.mask * s + f
            return (1 - self.words["dropout_rate"]) * s + f
        if self.gate is None:
            return s + f
        g = torch.sigmoid(self.gate(s))
        return (1 - g) * s + (g * f if self.how == "exclusive-gating" else f)


class ResNet(nn.Module):
    """A CIFAR network with the architecture, and the parameter names, of a `tinyres.networks.Network`.

    Parameters
    ----------
    network : Network
        One that `build_network` makes, with any of its arguments: all of them are read from it.
    groups : int
        Parts of the mini-batch with batch norm statistics of their own.
    eps : float
        What batch norm adds to the variance.
    running_momentum : float
        The share of a mini-batch in the running statistics.

    Raises
    ------
    UserError
        If the network is another one, for example without batch norm.
    """

    def __init__(
        self, network: Network, *, groups: int = 1, eps: float = 1e-5, running_momentum: float = 0.1
    ) -> None:
        super().__init__()
        words = words_of(network)
        block, first_1x1 = words["block"], words["stride_on"] == "first-1x1"
        self.kind = words["unit"]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = None if self.kind == "preactivation" else GroupedBatchNorm(16)
        channels = 16
        for stage, width in enumerate((16, 32, 64), 1):
            units = nn.ModuleList()
            for n in range(len(network.stages[stage - 1])):
                stride = 2 if stage > 1 and n == 0 else 1
                widths = {
                    "basic": [(width, 3, stride), (width, 3, 1)],
                    "single": [(width, 3, stride)],
                    "bottleneck": [
                        (width, 1, stride if first_1x1 else 1),
                        (width, 3, 1 if first_1x1 else stride),
                        (4 * width, 1, 1),
                    ],
                }[block]
                units.append(Unit(words, widths, channels, stage == 1 and n == 0))
                channels = widths[-1][0]
            self.add_module(f"stage{stage}", units)
        self.last = Before(channels) if self.kind == "preactivation" else None
        self.fc = nn.Linear(channels, network.classes)
        for module in self.modules():
            if isinstance(module, GroupedBatchNorm):
                module.groups, module.eps, module.momentum = groups, eps, running_momentum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits (N, classes) of normalised images (N, 3, H, W)."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = F.relu(self.bn1(x))
        for stage in ("stage1", "stage2", "stage3"):
            for unit in self.get_submodule(stage):
                x = unit(x)
        if self.last is not None:
            x = self.last(x)
        elif self.kind == "relu-only-preactivation":
            x = F.relu(x)
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def words_of(network: Network) -> dict[str, Any]:
    """Return the arguments of `build_network` that give this very network.

    A network says some of them in words and others only by what its layers do, so every reading is built and
    compared. Where an argument makes no difference to the network its default is returned.

    Raises
    ------
    UserError
        If no arguments give this network: it was changed after it was built, or `build_network` has learned
        something that is not carried over yet.
    """
    unit = network.units[0]
    words: dict[str, Any] = {name: getattr(network, name) for name in ("block", "unit", "shortcut", "option")}
    words |= {name: getattr(unit, name) for name in ("shortcut_scale", "residual_scale", "dropout_rate")}
    words["classes"] = network.classes
    for stride_on, share in product(STRIDES_ON, (True, False)):
        words |= {"stride_on": stride_on, "share_with_option_a": share}
        if build_network(network.depth, **words) == network:
            return words
    raise UserError(
        "this network is not one that build_network makes, so demos/torch_network.py does not know what it "
        "computes: write it in PyTorch by hand, or carry over one that build_network makes."
    )


def load_state(module: ResNet, state: Mapping[str, np.ndarray]) -> ResNet:
    """Copy a tinyres state (parameters and running statistics) into the module and return it.

    A state does not say what it was trained in: the module must be made from the same network, with the same
    eps and groups. `load_run` sees to that.

    Parameters
    ----------
    module : ResNet
        Takes on the dtype of `state`, so that nothing is rounded.
    state : mapping of str to array
        From a step's ``state()``, `tinyres.init.initialise`, or a checkpoint; velocities are left out.

    Raises
    ------
    UserError
        If a name or a shape of the module is missing from the state, or the other way round.
    """
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state.items()}
    tensors = {name: x for name, x in tensors.items() if not name.startswith("optimizer.")}
    mine = {name: x for name, x in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name in sorted(mine.keys() | tensors.keys()):
        here = tuple(mine[name].shape) if name in mine else "missing"
        there = tuple(tensors[name].shape) if name in tensors else "missing"
        if here != there:
            raise UserError(
                f"the state is of another network, {name} is {there} in it and {here} in the module: build the "
                "module from the network of that run, for which there is load_run."
            )
    module.to(next(iter(tensors.values())).dtype).load_state_dict(tensors, strict=False)
    return module


def load_run(run: str | Path, data_dir: str | Path | None = None) -> ResNet:
    """Carry a run over: the network, the weights and the settings that its folder holds.

    Parameters
    ----------
    run : path
        A run's folder, whose newest good checkpoint is taken, or one of the checkpoints in it.
    data_dir : path, optional
        Where the data set lies, if not where the run had it; read only where the recipe recomputes batch norm's
        statistics over the training set before it evaluates, which a checkpoint does not hold.

    Returns
    -------
    ResNet
        In the run's dtype and in training mode; after ``.eval()`` its logits are the run's own.

    Raises
    ------
    UserError
        If the folder holds no run, or the checkpoint is of another one.
    """
    run = Path(run)
    config = _configuration(run)
    if run.is_dir():
        found = load_newest_checkpoint(run)
        if found is None:
            raise UserError(f"{run} has no checkpoint yet: train longer, or name another folder.")
        path, checkpoint = found
    else:
        path, checkpoint = run, load_checkpoint(run)
    if checkpoint.facts.get("what") != config.part("what"):
        raise UserError(
            f"{path} is from another run than the config.json beside it: put it back into its own folder."
        )
    recipe, state = config.recipe, checkpoint.state
    network = config.network(len(state["fc.bias"]))
    if recipe.recompute_statistics:
        training, batches = _batches(config, data_dir)
        backend = get_backend("numpy", "float64" if config.precision == "float64" else "float32")
        options = {"batch_size": config.batch_size}
        state = recompute_statistics(backend, network, state, training, batches.normalise, recipe, **options)
    module = ResNet(
        network,
        groups=recipe.groups(config.batch_size),
        eps=recipe.eps,
        running_momentum=recipe.running_momentum,
    )
    return load_state(module, state)


def normaliser(run: str | Path, data_dir: str | Path | None = None) -> Callable[[np.ndarray], torch.Tensor]:
    """Return what turns images into the input of a run's network.

    Parameters
    ----------
    run : path
        A run's folder, or a checkpoint in it.
    data_dir : path, optional
        Where the data set lies, if not where the run had it: its mean counts over what the run trained on.

    Returns
    -------
    callable
        From uint8 images (N, 3, 32, 32), a NumPy array, to a tensor in the run's dtype.
    """
    _, batches = _batches(_configuration(Path(run)), data_dir)
    return lambda images: torch.from_numpy(np.ascontiguousarray(batches.normalise(images)))


def _configuration(run: Path) -> Config:
    return Config.read((run if run.is_dir() else run.parent) / "config.json")


def _batches(config: Config, data_dir: str | Path | None) -> tuple[Dataset, Batches]:
    """Return what a run trains on, and its mini-batches."""
    training, _ = load_dataset(config.dataset, data_dir or config.data_dir, validation=config.validation)
    options: dict[str, Any] = {"seed": config.seed, "batch_size": config.batch_size, "dtype": config.dtype}
    return training, Batches(training, config.recipe, **options)


def save_state(module: ResNet) -> dict[str, np.ndarray]:
    """Return the module's parameters and running statistics as a tinyres state, without velocities."""
    return {
        name: tensor.detach().cpu().numpy().copy()
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
