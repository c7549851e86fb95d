"""A foreign checkpoint's tensors under our names and in our shapes, and what became of each key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import UserError, WeightsError
from mim3d.models.adaptation import KERNEL, TABLE
from mim3d.models.layouts.layout import Layout, unwrapped
from mim3d.models.layouts.shapes import (
    Kernel,
    Said,
    check_axes,
    encoder_of_shapes,
    grid_of,
    kernel_of,
)
from mim3d.models.presets import size_of
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import PREFIX, module_misfits
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.positions import frequencies_index, sincos

CLASS_TOKEN = "class_token"
RAW = "decoder.trunk.raw.conv1.weight"
OUT = "decoder.out.weight"
PART = re.compile(r"(.+)\[([012])\]")
"""A target of which three parts are joined."""
SAME_TABLE = 1e-4
"""Largest difference of a position table to a formula's that is still called the same."""


@dataclass(frozen=True)
class Translated:
    """What a layout makes of a checkpoint.

    Args:
        layout: the one that was used.
        encoder: tensors by the encoder's own keys, in our shapes.
        config: the encoder they are of.
        decoder: tensors by `decoder.*`, in our shapes; empty where none fits whole.
        decoder_config: the decoder they are of; None without one.
        names: every key of the checkpoint, with ours or None.
        reasons: every key that has none of ours, and why it is left out.
        remarks: what else a user should know.
    """

    layout: Layout
    encoder: dict[str, Tensor]
    config: EncoderConfig
    decoder: dict[str, Tensor]
    decoder_config: DecoderConfig | None
    names: dict[str, str | None]
    reasons: dict[str, str]
    remarks: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Outputs of the decoder's last map; 0 without one."""
        return len(self.decoder[OUT]) if self.decoder else 0


def translate(tensors: Mapping[str, Tensor], layout: Layout, said: Said) -> Translated:
    """The tensors of a checkpoint as ours.

    Args:
        tensors: by the checkpoint's keys.
        layout: whose checkpoint it is.
        said: what the user says, where shapes leave something open.

    Raises:
        WeightsError: a key that the encoder computes with is not known, or the shapes do not say
            which encoder it is.
    """
    short = unwrapped(tensors)
    names = {key: layout.ours(short[key]) for key in tensors}
    _check_inside(layout, {key: short[key] for key, name in names.items() if name is None})
    ours = _joined(tensors, names)
    inside = {k.removeprefix(PREFIX): v for k, v in ours.items() if k.startswith(PREFIX)}
    decoder = {key: tensor for key, tensor in ours.items() if not key.startswith(PREFIX)}
    raw = decoder.get(RAW)
    sees = raw.shape[1] if raw is not None and raw.ndim > 2 else None

    # From their shapes to ours.
    axes = {KERNEL: 0, TABLE: 3} | ({CLASS_TOKEN: 0} if layout.table_has_class else {})
    check_axes(inside, axes, layout)
    kernel = kernel_of(inside[KERNEL], said, channels=sees)
    inside[KERNEL] = kernel.weight
    grid = _place_tokens(inside, layout, kernel, said)
    config = encoder_of_shapes(inside, layout, kernel, grid, said)
    reasons = {
        key: layout.reason(short[key]) or "no counterpart"
        for key, name in names.items()
        if name is None
    }
    made, decoder_config, why = _whole_decoder(decoder, layout, config, reasons)
    if decoder and not made:
        dropped = {key for key, name in names.items() if name and not name.startswith(PREFIX)}
        reasons |= {key: f"the decoder is not taken: {why}" for key in dropped}
        names |= dict.fromkeys(dropped)
    plain = {key: None if name is None else _whole_name(name) for key, name in names.items()}
    remarks = (*layout.remarks, *_remarks(layout, inside, config, kernel, said))
    return Translated(layout, inside, config, made, decoder_config, plain, reasons, remarks)


def _check_inside(layout: Layout, unknown: Mapping[str, str]) -> None:
    """Refuses keys that belong to blocks or embedding and that nobody told how to read."""
    inside = [key for key, short in unknown.items() if layout.is_inside(short)]
    if inside:
        listed = "\n".join(f"  `{key[:120]}`" for key in inside)
        raise WeightsError(
            f"the encoder computes with `{inside[0][:120]}`, which has no counterpart"
            + (f", nor have {len(inside) - 1} further keys" if len(inside) > 1 else ""),
            remedy="without them it would be another network; if they play no part, leave them "
            f"out by `drop` of a `--key_map`\n{listed}",
            code="no-counterpart",
        )


def _joined(tensors: Mapping[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Tensors by our names, queries, keys and values behind each other."""
    whole: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, name in names.items():
        if name is None:
            continue
        part = PART.fullmatch(name)
        place = parts.setdefault(part[1], {}) if part else whole
        at = int(part[2]) if part else name
        if at in place:
            raise WeightsError(
                f"`{key[:120]}` and another key would both become `{name}`",
                remedy="leave one out by `drop` of a `--key_map`",
                code="key-map",
            )
        place[at] = tensors[key]  # type: ignore[index]
    for name, three in parts.items():
        if len(three) < 3 or name in whole:
            raise WeightsError(f"not one each of the three parts of `{name}`", code="key-map")
        whole[name] = torch.cat([three[i] for i in range(3)])
    return whole


def _whole_name(name: str) -> str:
    part = PART.fullmatch(name)
    return part[1] if part else name


def _place_tokens(inside: dict[str, Tensor], layout: Layout, kernel: Kernel, said: Said) -> Triple:
    """Brings class token and position table to our shapes; returns the table's grid."""
    width = len(kernel.weight)
    token = inside.get(CLASS_TOKEN)
    if token is not None:
        inside[CLASS_TOKEN] = token.reshape(1, -1)
    table = inside[TABLE]
    if layout.table_has_class:
        # Our class token has no position: theirs is added once and for all.
        if token is not None and token.numel() == table.shape[-1] == width:
            inside[CLASS_TOKEN] = inside[CLASS_TOKEN] + table[0, :1]
        table = table[:, 1:]
    inside[TABLE] = table.contiguous()
    return grid_of(table.shape[1], said, is_flat=kernel.is_flat)


def _whole_decoder(
    decoder: Mapping[str, Tensor],
    layout: Layout,
    config: EncoderConfig,
    reasons: Mapping[str, str],
) -> tuple[dict[str, Tensor], DecoderConfig | None, str]:
    """The decoder's tensors if they are one of ours, whole; else none, and why."""
    if any(key not in decoder or decoder[key].ndim < 4 for key in (RAW, OUT)):
        return {}, None, "it is not whole"
    unknown = [key for key, why in reasons.items() if why == "no counterpart"]
    if unknown:
        return {}, None, f"`{unknown[0][:120]}` has no counterpart"
    thin = {key: _thin(tensor) for key, tensor in decoder.items()}
    taps = layout.tap_numbers(size_of(config).depth)
    described = DecoderConfig(taps=taps, tap_norm="none", feature_size=len(thin[RAW]))
    try:
        with torch.device("meta"):
            network = UNETR(VolumeViT(config), len(thin[OUT]), described)
    except UserError as error:
        return {}, None, error.what
    wrong = module_misfits(
        network.decoder, {key.removeprefix("decoder."): value for key, value in thin.items()}
    )
    return ({}, None, str(wrong[0])) if wrong else (thin, described, "")


def _thin(weight: Tensor) -> Tensor:
    """A map of two-dimensional features as one of features that are one voxel thick."""
    if weight.ndim != 4:
        return weight
    if weight.shape[2:] != (3, 3):
        return weight[..., None]
    wide = weight.new_zeros((*weight.shape, 3))
    wide[..., 1] = weight
    return wide


def _remarks(
    layout: Layout,
    inside: Mapping[str, Tensor],
    config: EncoderConfig,
    kernel: Kernel,
    said: Said,
) -> list[str]:
    """What was taken for granted, so that a user can correct it."""
    sides, grid = (" x ".join(map(str, one or ())) for one in (config.patch, config.learned_grid))
    channels = "1 channel" if kernel.channels == 1 else f"{kernel.channels} channels"
    size = size_of(config)
    told = "as said" if said.heads else "which no tensor says: `--encoder.heads` corrects it"
    lines = [
        f"read as {layout.source}: width {size.width}, depth {size.depth}, patch {sides}, "
        f"{channels}, {grid} positions",
        f"{size.heads} attention heads, {told}",
    ]
    if layout.table_has_class:
        lines.append("the first row of its position table belongs to its class token, and is added")
    if kernel.is_flat:
        lines.append("two-dimensional: the first axis of its images is our x, the second our y")
    if _is_formula(inside[TABLE], config):
        lines.append(
            "its positions are those of `--encoder.positions sincos_index`, which has them for "
            "every size of crop without a table"
        )
    return lines


def _is_formula(table: Tensor, config: EncoderConfig) -> bool:
    """Whether a position table is the sine-cosine of the token's index."""
    width, counts = table.shape[-1], config.learned_grid
    if counts is None or counts[2] == 1 or width < 6:
        return False
    grid = TokenGrid(counts, config.patch, counts)
    formula = sincos(grid.indices()[None].float(), frequencies_index(width // 6), width)
    return bool((formula - table.float()).abs().max() <= SAME_TABLE)
