"""A run as a program of `torch.export`: a graph and its weights, without a line of our code."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mim3d.config.data import Triple
from mim3d.config.export import ExportConfig
from mim3d.foundation.atomic import whole_file
from mim3d.foundation.errors import ConfigError, UserError, WeightsError
from mim3d.foundation.reporting import Reporter
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.vit import VolumeViT
from mim3d.workflows.export.subject import Subject, check_whole
from mim3d.workflows.result import Result

BATCHES = (2, 1, 3)
"""Crops of a batch at the sizes that are compared, in turn."""


class Encoding(nn.Module):
    """An encoder whose answers are tensors: tokens, the taps that were asked for, the prefix.

    Args:
        encoder: a `VolumeViT`.
        taps: blocks passed.
    """

    def __init__(self, encoder: VolumeViT, taps: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.taps = tuple(taps)

    @property
    def names(self) -> tuple[str, ...]:
        """What its answers are called."""
        prefix = ("prefix",) if self.encoder.prefix else ()
        return ("tokens", *(f"tap_{number}" for number in self.taps), *prefix)

    def forward(self, voxels: Tensor, spacing_mm: Tensor | None = None) -> tuple[Tensor, ...]:
        """`b n d` each, of voxels `b c x y z` and their spacing `b 3`."""
        states = self.encoder(voxels, spacing_mm, taps=self.taps)
        prefix = () if states.prefix is None else (states.prefix,)
        return (states.tokens, *states.taps, *prefix)


class Answering(nn.Module):
    """A whole network with voxels and spacing alone.

    Args:
        network: a segmenter or classifier.
    """

    names = ("answers",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, voxels: Tensor, spacing_mm: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits `b k x y z`, or `b k`, of voxels `b c x y z` and their spacing `b 3`."""
        return (self.network(voxels, spacing_mm),)


@dataclass(frozen=True, eq=False)
class Program:
    """A graph, the module it was made of, and how the two are compared.

    Attributes:
        graph: what `torch.export` made.
        module: an `Encoding` or `Answering`.
        inputs: names of what goes in.
        sides: what every side is a multiple of, and `size`.
        size: voxels of the crop it was made with.
        sizes: of the crops it is compared on.
        is_dynamic: whether the sides may change.
    """

    graph: ExportedProgram
    module: Encoding | Answering
    inputs: tuple[str, ...]
    channels: int
    patch: Triple
    size: Triple
    sizes: tuple[Triple, ...]
    is_dynamic: bool

    @property
    def example(self) -> tuple[Tensor, ...]:
        """What it was made with."""
        return example(self.channels, self.size, 2, self.inputs)

    @property
    def shapes(self) -> tuple[dict[int, Any], ...]:
        """Which sides of the inputs may change."""
        return _shapes(self.inputs, self.patch, self.size if self.is_dynamic else None)

    @torch.no_grad()
    def difference(
        self, run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]], tolerance: float
    ) -> list[dict[str, Any]]:
        """How far another form of the graph is from the module, at every size.

        Args:
            run: from the inputs to the answers, in their order.
            tolerance: largest difference, as a share of the largest answer.

        Raises:
            WeightsError: it is further off.
        """
        found = []
        for number, size in enumerate(self.sizes):
            batch = BATCHES[number % len(BATCHES)]
            inputs = example(self.channels, size, batch, self.inputs, seed=number + 1)
            expected = self.module(*inputs)
            pairs = list(zip(run(inputs), expected, strict=True))
            far = max(float((answer - own).abs().max()) for answer, own in pairs)
            largest = max(float(own.abs().max()) for own in expected)
            if not far <= tolerance * max(1.0, largest):
                crop = " x ".join(map(str, size))
                raise WeightsError(
                    f"the program answers otherwise than the network, by {far:.1e} on crops of "
                    f"{crop} voxels",
                    remedy="try `--graph.dynamic false`; `--graph.tolerance` is what is taken",
                    code="differs",
                )
            found.append({"size": list(size), "batch": batch, "difference": far,
                          "largest": largest})  # fmt: skip
        return found


def made_program(subject: Subject, config: ExportConfig) -> Program:
    """The graph of a run's network or encoder.

    Raises:
        UserError: the network cannot be written down for any size.
        ConfigError: a size is no whole number of patches, or a tap is out of range.
    """
    asked, part, size = config.graph, subject.part(config), subject.size(config)
    patch, channels = subject.encoder.patch, subject.encoder.channels
    for one in asked.check_sizes:
        check_whole(one, patch, "graph.check_sizes")
    inputs = ("voxels", "spacing_mm") if subject.encoder.positions.in_mm else ("voxels",)
    module = _plain(part, config)
    is_dynamic = asked.dynamic
    if is_dynamic:
        size = _open_size(size, patch)
    shapes = _shapes(inputs, patch, size if is_dynamic else None)
    given = example(channels, size, 2, inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
    except torch._dynamo.exc.UserError as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"the network cannot be written down for any size: {first}",
            remedy="add `--graph.dynamic false` for one size of crop",
            code="no-dynamic",
        ) from error
    sizes = asked.check_sizes or (_others(size, patch) if is_dynamic else (size,) * len(BATCHES))
    return Program(graph, module, inputs, channels, patch, size, sizes, is_dynamic)


def write(subject: Subject, out: Path, config: ExportConfig, reporter: Reporter) -> Result:
    """Writes `out`, a program that `torch.export.load(out).module()` runs.

    Raises:
        UserError: as `made_program`.
        WeightsError: it answers otherwise than the network.
    """
    made = made_program(subject, config)
    answering = made.graph.module()
    compared = made.difference(lambda inputs: answering(*inputs), config.graph.tolerance)
    facts = {**subject.facts(), **interface(made)}
    extra = {"mim3d.json": json.dumps(facts)}
    with whole_file(out) as temporary:
        torch.export.save(made.graph, str(temporary), extra_files=extra)
    lines = [
        *described(made, compared),
        "to run it:",
        f"  program = torch.export.load({str(out)!r}).module()",
        f"  {assigned(made)} = program({', '.join(made.inputs)})",
    ]
    return Result("\n".join(lines), {**facts, "compared": compared}, (out,))


def interface(made: Program) -> dict[str, Any]:
    """What goes in and comes out, as JSON."""
    return {"inputs": list(made.inputs), "answers": list(made.module.names),
            "size": list(made.size), "dynamic": made.is_dynamic}  # fmt: skip


def assigned(made: Program) -> str:
    """The left side of a line of Python that calls it: its answers are a tuple or list."""
    names = made.module.names
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


def described(made: Program, compared: Sequence[dict[str, Any]]) -> list[str]:
    """What is said of a program: its inputs, its sizes, and how well it agrees."""
    edges = " x ".join(map(str, made.patch))
    own = " x ".join(map(str, made.size))
    sides = f"whole patches of {edges}" if made.is_dynamic else f"{own} and no other"
    lines = [f"a program from {' and '.join(made.inputs)} to {', '.join(made.module.names)}; any "
             f"batch; sides {sides}"]  # fmt: skip
    for one in compared:
        size = " x ".join(map(str, one["size"]))
        lines.append(
            f"largest difference {one['difference']:.1e} (of answers up to {one['largest']:.3g}) "
            f"on {one['batch']} crops of {size}"
        )
    return lines


def example(
    channels: int, size: Triple, batch: int, inputs: Sequence[str], seed: int = 0
) -> tuple[Tensor, ...]:
    """Random voxels `b c x y z`, and spacings `b 3` of 0.5 to 2 mm where they are an input."""
    drawn = torch.Generator().manual_seed(seed)
    voxels = torch.randn(batch, channels, *size, generator=drawn)
    if "spacing_mm" not in inputs:
        return (voxels,)
    return voxels, 0.5 + 1.5 * torch.rand(batch, 3, generator=drawn)


def _plain(part: nn.Module, config: ExportConfig) -> Encoding | Answering:
    taps = config.graph.taps
    if not isinstance(part, VolumeViT):
        if taps is not None:
            raise ConfigError(
                "`graph.taps` are an encoder's, and the whole network hands out answers alone",
                remedy="leave it out, or add `--graph.part encoder`",
                code="unused",
            )
        _check_sees_all(part)
        return Answering(part).eval()
    if taps is None:
        taps = tuple(dict.fromkeys(-(-part.depth * quarter // 4) for quarter in (1, 2, 3, 4)))
    if any(not 1 <= tap <= part.depth for tap in taps):
        raise UserError(
            f"`graph.taps` is {','.join(map(str, taps))}, the encoder has {part.depth} blocks",
            remedy=f"take numbers from 1 to {part.depth}",
            code="bad-taps",
        )
    return Encoding(part, taps).eval()


def _check_sees_all(network: nn.Module) -> None:
    """Refuses a classifier that chooses among the tokens of each crop.

    Raises:
        UserError: it leaves air out, which voxels alone do not tell; or it sees a draw of them.
    """
    if not isinstance(network, VolumeClassifier):
        return
    chooses = "drop_air" if network.drop_air else "keep_at_test" if network.keep_at_test else None
    if chooses:
        raise UserError(
            f"the run's `classification.{chooses}` chooses the tokens of each crop that are seen, "
            "and a program of voxels sees all",
            remedy="`--format hub-folder` keeps it all; or add `--graph.part encoder`",
            code="sees-part",
        )


def _shapes(
    inputs: Sequence[str], patch: Triple, size: Triple | None
) -> tuple[dict[int, Any], ...]:
    """What may change: the batch, and with a size the sides of more than one voxel."""
    batch = Dim("batch")
    voxels: dict[int, Any] = {0: batch}
    for axis, (side, edge) in enumerate(zip(size or (), patch, strict=False)):
        if side > 1:
            tokens = Dim(f"tokens_{'xyz'[axis]}")
            voxels[axis + 2] = tokens if edge == 1 else edge * tokens
    return (voxels, {0: batch}) if "spacing_mm" in inputs else (voxels,)


def _open_size(size: Triple, patch: Triple) -> Triple:
    """Two tokens or more a side: torch takes a side of one to be one always, as in slices."""
    x, y, z = (side if side == 1 else max(side, 2 * edge)
               for side, edge in zip(size, patch, strict=True))  # fmt: skip
    return x, y, z


def _others(size: Triple, patch: Triple) -> tuple[Triple, Triple, Triple]:
    """A size, and two with a token more or less a side; slices stay as thin."""

    def moved(by: Triple) -> Triple:
        x, y, z = (side if side == 1 else max(2 * edge, side + tokens * edge)
                   for side, edge, tokens in zip(size, patch, by, strict=True))  # fmt: skip
        return x, y, z

    return size, moved((1, -1, 2)), moved((-1, 2, 1))
