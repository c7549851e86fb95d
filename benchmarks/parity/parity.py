"""Hidden states and logits of converted checkpoints beside those of the networks they come from.

    python benchmarks/parity/parity.py --out benchmarks/parity/results.json

Each network gets random weights, biases and norms too; its state dict goes through
`mim3d.models.layouts`; both see the same random volume in fp32 on the CPU. `--small` takes narrow
networks (seconds).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import monai.networks.nets as nets
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import networks

from mim3d.models.layouts.layout import guessed, unwrapped
from mim3d.models.layouts.shapes import Said
from mim3d.models.layouts.translated import translate
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT

Size = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """One checkpoint to compare.

    Args:
        name: whose network.
        build: from width, depth and heads to the network.
        size: voxels of what it sees, two or three sides.
        patch: voxels behind a token.
        channels: of what it sees.
        deep: slices that a two-dimensional kernel is inflated to.
        depth: blocks, where it is fixed.
    """

    name: str
    build: Callable[[int, int, int], nn.Module]
    size: Size
    patch: Size = (16, 16, 16)
    channels: int = 1
    deep: int | None = None
    depth: int | None = None


def pairs() -> list[Pair]:
    """What is compared; sizes are those of the papers, and one of three different sides."""
    cube, box, crop = (96, 96, 96), (96, 48, 32), (64, 32, 48)

    def vit(size: Size, patch: Size, channels: int, **more: Any) -> Callable[..., nn.Module]:
        return lambda w, d, h: networks.MonaiHidden(
            nets.ViT(channels, size, patch, w, 4 * w, d, h, spatial_dims=len(size), **more)
        )

    def mae(size: Size, channels: int, **more: Any) -> Callable[..., nn.Module]:
        return lambda w, d, h: networks.MonaiHidden(
            nets.MaskedAutoEncoderViT(channels, size, 16, w, 4 * w, d, h, decoder_hidden_size=48,
                                      decoder_num_heads=2, **more)
        )  # fmt: skip

    def unetr(size: Size, channels: int, classes: int) -> Callable[..., nn.Module]:
        return lambda w, d, h: networks.MonaiHidden(
            nets.UNETR(channels, classes, size, 16, w, 4 * w, num_heads=h, spatial_dims=len(size))
        )

    def autoencoder(w: int, d: int, h: int) -> nn.Module:
        return networks.MonaiHidden(nets.ViTAutoEnc(1, cube, 16, 1, 16, w, 4 * w, d, h))

    p16 = (16, 16, 16)
    return [
        Pair("MONAI ViT, convolution", vit(cube, p16, 1), cube),
        Pair("MONAI ViT, linear map, class token, bias",
             vit(box, p16, 2, proj_type="perceptron", classification=True, qkv_bias=True), box,
             channels=2),
        Pair("MONAI ViT, patch 16 x 8 x 4", vit(crop, (16, 8, 4), 1), crop, (16, 8, 4)),
        Pair("MONAI ViT, two axes", vit((224, 160), (16, 16), 1), (224, 160), (16, 16)),
        Pair("MONAI MaskedAutoEncoderViT", mae(box, 1), box),
        Pair("MONAI ViTAutoEnc", autoencoder, cube),
        Pair("MONAI UNETR, 14 classes", unetr(cube, 1, 14), cube, depth=12),
        Pair("MONAI UNETR, 4 channels, 3 regions", unetr(box, 4, 3), box, channels=4, depth=12),
        Pair("MONAI UNETR, two axes", unetr((96, 64), 1, 3), (96, 64), (16, 16), depth=12),
        Pair("MIM-Med3D MAE", lambda w, d, h: networks.MimMae(cube, 1, w, d, h, p16), cube),
        Pair("SelfMedMAE MAE", lambda w, d, h: networks.SelfMedMae((6, 3, 2), 4, w, d, h, p16),
             box, channels=4),
        Pair("SelfMedMAE UNETR", lambda w, d, h: networks.SelfMedUnetr(box, 1, 14, w, h, 16), box,
             depth=12),
        Pair("facebookresearch/mae, slices",
             lambda w, d, h: networks.FacebookMae(224, 3, w, d, h, 16), (224, 224), (16, 16), 3),
        Pair("facebookresearch/mae, inflated 16 deep",
             lambda w, d, h: networks.FacebookMae(224, 3, w, d, h, 16), (224, 224), (16, 16), 3,
             deep=16),
    ]  # fmt: skip


def compared(pair: Pair, width: int, depth: int, heads: int) -> dict[str, Any]:
    """The largest differences of one pair, and what was compared."""
    depth = pair.depth or depth
    theirs = networks.randomised(pair.build(width, depth, heads))
    state = getattr(theirs, "network", theirs).state_dict()
    layout = guessed(unwrapped(state).values())
    assert layout is not None
    grid = [side // edge for side, edge in zip(pair.size, pair.patch, strict=True)]
    x, y, z = (*grid, 1)[:3]
    px, py, pz = (*pair.patch, 1)[:3]
    found = translate(state, layout, Said((px, py, pz), pair.channels, heads, (x, y, z), pair.deep))
    ours: nn.Module = VolumeViT(found.config)
    tensors = found.encoder
    if found.decoder:
        ours = UNETR(ours, found.outputs, found.decoder_config)  # type: ignore[arg-type]
        tensors = {f"encoder.{k}": v for k, v in tensors.items()} | found.decoder
    ours.load_state_dict(tensors, strict=True)
    images = torch.randn(1, pair.channels, *pair.size, generator=torch.Generator().manual_seed(1))
    thick = images if images.ndim == 5 else images[..., None]
    volume = thick.expand(-1, -1, -1, -1, pair.deep) if pair.deep else thick
    with torch.no_grad():
        return {
            "name": pair.name,
            "layout": layout.layout,
            "volume": list(volume.shape[1:]),
            "encoder": [width, depth, heads],
            "patch": list(found.config.patch),
            "keys": len(state),
            "keys_taken": sum(name is not None for name in found.names.values()),
            **_differences(theirs, ours.eval(), images, volume),
        }


def _differences(theirs: nn.Module, ours: nn.Module, images: Tensor, volume: Tensor) -> dict:
    last, states = theirs.hidden(images)  # type: ignore[operator]
    encoder = getattr(ours, "encoder", ours)
    hidden = encoder(volume, taps=range(1, encoder.depth + 1))
    found: dict[str, Any] = {
        "taps": [_largest(*both) for both in zip(hidden.taps, states, strict=True)],
        "largest_value": float(max(state.abs().max() for state in states)),
        "last": _largest(hidden.tokens, last),
        "logits": None,
    }
    if isinstance(ours, UNETR):
        expected = getattr(theirs, "network", theirs)(images)
        logits = ours(volume)
        found["logits"] = _largest(logits, expected.reshape(logits.shape))
    return found


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| checkpoint | layout | volume | encoder | patch | keys | worst tap | last | logits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = (" x ".join(map(str, row[key])) for key in ("volume", "encoder", "patch"))
        logits = "-" if row["logits"] is None else f"{row['logits']:.1e}"
        lines.append(
            f"| {row['name']} | `{row['layout']}` | {' | '.join(sizes)} "
            f"| {row['keys_taken']} of {row['keys']} | {max(row['taps']):.1e} (of "
            f"{row['largest_value']:.0f}) | {row['last']:.1e} | {logits} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compares all pairs, prints the table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON of all numbers")
    parser.add_argument("--small", action="store_true", help="narrow networks")
    asked = parser.parse_args()
    size = (48, 3, 4) if asked.small else (768, 12, 12)
    begun, rows = time.monotonic(), []
    for pair in pairs():
        rows.append(compared(pair, *size))
        assert all(map(math.isfinite, rows[-1]["taps"]))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    versions = {"torch": torch.__version__, "monai": monai.__version__}
    record = {"versions": versions, "device": "cpu", "dtype": "float32", "rows": rows,
              "seconds": round(time.monotonic() - begun)}  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
