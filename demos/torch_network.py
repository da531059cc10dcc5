"""The same networks in plain torch.nn, to carry weights to PyTorch and back.

Nothing in tinyres needs PyTorch; this file does. It is written from the paper, not from tinyres's tables, so
that the parity tests compare two readings of the paper. The modules are named so that their parameters have the
same names as in a tinyres checkpoint. docs/weights.md shows how to use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tinyres.networks import Network


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
        network: Network,
        widths: list[tuple[int, int, int]],
        c_in: int,
        first: bool,
        numbers: dict[str, float],
    ) -> None:
        super().__init__()
        self.kind, self.how, self.numbers = network.unit, network.shortcut, numbers
        self.c_out = c_out = widths[-1][0]
        self.stride = stride = int(np.prod([s for _, _, s in widths]))
        changes = c_in != c_out or stride > 1
        adopts = (first or changes) and self.kind in ("preactivation", "relu-only-preactivation")
        self.relu_first = adopts and self.kind == "relu-only-preactivation"
        self.before = Before(c_in) if adopts and self.kind == "preactivation" else None
        self.branch = Branch(self.kind, widths, c_in, adopts)
        self.shortcut = None
        if network.option == "C" or (changes and network.option == "B"):
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
            return self.numbers["shortcut_scale"] * s + self.numbers["residual_scale"] * f
        if self.how == "dropout":
            if self.training:
                assert self.mask is not None
                return self.mask * s + f
            return (1 - self.numbers["dropout_rate"]) * s + f
        if self.gate is None:
            return s + f
        g = torch.sigmoid(self.gate(s))
        return (1 - g) * s + (g * f if self.how == "exclusive-gating" else f)


class ResNet(nn.Module):
    """A CIFAR network with the architecture, and the parameter names, of a `tinyres.networks.Network`.

    Parameters
    ----------
    network : Network
        Gives depth, block, unit, shortcut, option and classes.
    shortcut_scale, residual_scale, dropout_rate : float
        The numbers of the scaling and dropout shortcuts.
    groups : int
        The number of parts of the mini-batch that have their own batch norm statistics.
    """

    def __init__(
        self,
        network: Network,
        *,
        shortcut_scale: float = 1.0,
        residual_scale: float = 1.0,
        dropout_rate: float = 0.5,
        groups: int = 1,
    ) -> None:
        super().__init__()
        numbers = dict(shortcut_scale=shortcut_scale, residual_scale=residual_scale, dropout_rate=dropout_rate)
        self.kind = network.unit
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
                    "bottleneck": [(width, 1, stride), (width, 3, 1), (4 * width, 1, 1)],
                }[network.block]
                units.append(Unit(network, widths, channels, stage == 1 and n == 0, numbers))
                channels = widths[-1][0]
            self.add_module(f"stage{stage}", units)
        self.last = Before(channels) if self.kind == "preactivation" else None
        self.fc = nn.Linear(channels, network.classes)
        for module in self.modules():
            if isinstance(module, GroupedBatchNorm):
                module.groups = groups

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


def load_state(module: ResNet, state: Mapping[str, np.ndarray]) -> ResNet:
    """Copy a tinyres state (parameters and running statistics) into the module and return it.

    Parameters
    ----------
    module : ResNet
        A module in the dtype of `state`.
    state : mapping of str to array
        From a step's ``state()``, `tinyres.init.initialise`, or a checkpoint; velocities are left out.

    Raises
    ------
    KeyError
        If a name or a shape of the module is missing from the state, or the other way round.
    """
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state.items()}
    tensors = {name: x for name, x in tensors.items() if not name.startswith("optimizer.")}
    expected = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    if expected != set(tensors):
        raise KeyError(f"names differ: {sorted(expected ^ set(tensors))}")
    module.load_state_dict(tensors, strict=False)
    return module


def save_state(module: ResNet) -> dict[str, np.ndarray]:
    """Return the module's parameters and running statistics as a tinyres state, without velocities."""
    return {
        name: tensor.detach().cpu().numpy().copy()
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
