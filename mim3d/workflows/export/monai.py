"""A run as the state dict of a MONAI module, with the arguments that make the module."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.config.export import ExportConfig
from mim3d.foundation.atomic import write_json
from mim3d.foundation.errors import UserError, WeightsError
from mim3d.foundation.reporting import Reporter
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.monai_names import (
    MonaiModule,
    encoder_obstacles,
    monai_classifier,
    monai_encoder,
    monai_unetr,
    unetr_obstacles,
)
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import save_weights
from mim3d.workflows.export.subject import Subject
from mim3d.workflows.result import Result


def write(subject: Subject, out: Path, config: ExportConfig, reporter: Reporter) -> Result:
    """Writes `out` (tensors) and `out` with `.json` (the module's class and arguments).

    MONAI's module is made, loads the tensors strictly and must give the network's answers.

    Raises:
        UserError: MONAI's module has no place for something of the network; all of it is listed.
        WeightsError: MONAI's module answers something else.
    """
    part, size = subject.part(config), subject.size(config)
    spacing = subject.spacing_mm if subject.encoder.positions.in_mm else None
    made = module_for(part, size, spacing)
    difference = _difference(part, made, size, spacing, config.graph.tolerance)
    beside = out.with_suffix(".json")
    arguments = {"class": f"monai.networks.nets.{made.name}", "arguments": made.arguments}
    place = {"crop_size": list(size), "spacing_mm": None if spacing is None else spacing.tolist()}
    facts = {**subject.facts(), **arguments, "fixed_at": place}
    save_weights(out, made.state, {"monai": json.dumps(arguments)})
    write_json(beside, facts)
    at = "" if spacing is None else f" and {' x '.join(f'{side:g}' for side in spacing)} mm voxels"
    crop = " x ".join(map(str, size))
    lines = [
        f"{len(made.state)} tensors for MONAI's {made.name}, for crops of {crop} voxels{at}",
        f"largest difference of its answers from the network's: {difference:.1e}",
        "to load it:",
        "  import json, monai, safetensors.torch",
        f"  made = json.load(open({str(beside)!r}))['arguments']",
        f"  net = monai.networks.nets.{made.name}(**made)",
        f"  net.load_state_dict(safetensors.torch.load_file({str(out)!r}))",
    ]
    return Result("\n".join(lines), {**facts, "difference": difference}, (out, beside))


def check(subject: Subject, config: ExportConfig) -> None:
    """Refuses what `write` would: all that MONAI has no place for.

    Raises:
        UserError: as `module_for`.
    """
    spacing = subject.spacing_mm if subject.encoder.positions.in_mm else None
    module_for(subject.part(config), subject.size(config), spacing)


def module_for(part: nn.Module, size: Triple, spacing_mm: Tensor | None) -> MonaiModule:
    """The MONAI module that stands for an encoder, a segmenter or a classifier.

    Args:
        part: one of these three.
        size: voxels of a crop, whole patches.
        spacing_mm: `3`; for positions in millimetres.

    Raises:
        UserError: MONAI has no place for something of it.
    """
    if isinstance(part, VolumeViT):
        _refuse(encoder_obstacles(part), "ViT", is_encoder=True)
        return monai_encoder(part, size, spacing_mm)
    if isinstance(part, UNETR):
        _refuse(unetr_obstacles(part), "UNETR")
        return monai_unetr(part, size, spacing_mm)
    assert isinstance(part, VolumeClassifier)
    found = encoder_obstacles(part.encoder, may_have_class_token=True)
    if part.decoder.pool != "class_token":
        found.append(
            f"`classification.pool {part.decoder.pool}`: MONAI's head reads the class token"
        )
    if part.decoder.standardises:
        found.append("`classification.norm batch`")
    if part.drop_air:
        found.append("`classification.drop_air`: MONAI's ViT sees every patch")
    if part.keep_at_test:
        found.append("`classification.keep_at_test`: MONAI's ViT sees every patch")
    _refuse(found, "ViT")
    return monai_classifier(part, size, spacing_mm)


def _refuse(obstacles: list[str], name: str, *, is_encoder: bool = False) -> None:
    if not obstacles:
        return
    alone = "" if is_encoder else "`--graph.part encoder` exports the encoder alone; "
    listed = "\n".join(f"  {one}" for one in obstacles)
    raise UserError(
        f"MONAI's {name} has no place for parts of this network",
        remedy=f"{alone}`--format onnx` and `torch-export` have fewer limits\n{listed}",
        code="no-counterpart",
    )


@torch.no_grad()
def _difference(
    part: nn.Module, made: MonaiModule, size: Triple, spacing: Tensor | None, tolerance: float
) -> float:
    """The largest difference of the answers to random voxels; MONAI loads strictly on the way."""
    from monai.networks import nets

    with torch.random.fork_rng(devices=[]):
        theirs = getattr(nets, made.name)(**made.arguments).eval()
    drawn = torch.Generator().manual_seed(0)
    voxels = torch.randn(1, made.arguments["in_channels"], *size, generator=drawn)
    theirs.load_state_dict(made.state, strict=True)
    expected = part(voxels, spacing)
    expected = expected.tokens if isinstance(part, VolumeViT) else expected
    answer = theirs(voxels)
    answer = answer if isinstance(answer, Tensor) else answer[0]
    difference = float((answer - expected).abs().max())
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise WeightsError(
            f"MONAI's {made.name} answers otherwise than the network, by {difference:.1e}",
            remedy="report it: the format has a place for all that this network has",
            code="differs",
        )
    return difference
