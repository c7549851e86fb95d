"""A step without numbers, against written-out formulas, torch's counter and a real step."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models import attention
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.segmentation import Segmentation
from mim3d.objectives.simmim import SimMIM
from mim3d.workflows.plan import trace
from mim3d.workflows.plan.trace import Trace, trace_step, without_content

SPACING = (1.0, 1.5, 2.5)


def masked(preset: Any, edge: int, kind: Any = MaskedAutoencoder, **fields: Any) -> Any:
    """Makes a pretext task."""
    encoder = EncoderConfig(preset=preset, patch=(edge,) * 3, default_spacing_mm=SPACING)
    return lambda: kind(VolumeViT(encoder), PretextConfig(**fields))


def traced(build: Callable[[], Task], **changes: Any) -> Trace:
    """Of one crop in bf16 on a GPU."""
    given: dict[str, Any] = {
        "crops": 1, "channels": 1, "crop_size": (96, 96, 96), "precision": "bf16", "on_gpu": True,
    }  # fmt: skip
    return trace_step(build, **{**given, **changes})


def encoder_flop(n: int, k: int, width: int, depth: int, patch: int) -> int:
    """2 k P w + L (24 k w^2 + 4 k^2 w), PERFORMANCE 10.1."""
    del n
    return 2 * k * patch * width + depth * (24 * k * width**2 + 4 * k**2 * width)


def full_decoder_flop(n: int, k: int, width: int, patch: int, d: int = 384, depth: int = 4) -> int:
    """Likewise; the last block asks for masked tokens only, which look at all of them."""
    m = n - k
    whole = 24 * n * d**2 + 4 * n**2 * d
    last = 2 * (m * d**2 + 2 * n * d**2 + m * d**2) + 4 * m * n * d + 2 * m * 8 * d**2
    return 2 * k * width * d + (depth - 1) * whole + last + 2 * m * d * patch


def cross_decoder_flop(n: int, k: int, width: int, patch: int, d: int = 384, depth: int = 4) -> int:
    """2 k w d + D (2 q (2 d^2 + 8 d^2) + 4 k d^2 + 4 q k d) + 2 q d P with a quarter decoded."""
    q = math.floor((n - k) / 4 + 0.5)
    block = 2 * q * 10 * d**2 + 4 * k * d**2 + 4 * q * k * d
    return 2 * k * width * d + depth * block + 2 * q * d * patch


SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}


@pytest.mark.parametrize(
    ("preset", "edge", "gflop_cross"),
    [("tiny", 16, 4.3), ("small", 8, 83.9), ("base", 16, 31.7), ("base", 8, 261)],
)
def test_flop_are_those_of_the_written_out_formulas(
    preset: str, edge: int, gflop_cross: float
) -> None:
    """PERFORMANCE 10.1: the table's quarter column, and both formulas exactly."""
    n = (96 // edge) ** 3
    k, patch, (width, depth) = n // 4, edge**3, SIZES[preset]
    encoder = encoder_flop(n, k, width, depth, patch)

    full = traced(masked(preset, edge))
    cross = traced(masked(preset, edge, decoder="cross", decode_fraction=0.25))

    assert full.forward_flop == encoder + full_decoder_flop(n, k, width, patch)
    assert cross.forward_flop == pytest.approx(
        encoder + cross_decoder_flop(n, k, width, patch), rel=0.02
    )
    assert cross.model_flop / 1e9 == pytest.approx(gflop_cross, rel=0.02)


def stem_flop(patches: int, width: int) -> int:
    """Of patches of 16 cubed: three stages of 16, 32 and 64 channels, then boxes to a token."""
    flop = 2 * 8 * 64 * width
    for edge, channels, below in ((8, 16, 1), (4, 32, 16), (2, 64, 32)):
        flop += edge**3 * (2 * 8 * below * channels + 2 * 2 * 27 * channels**2)
    return patches * flop


@pytest.mark.parametrize(("kind", "computed"), [(MaskedAutoencoder, 54), (SimMIM, 216)])
def test_a_convolutional_stem_costs_its_stages_in_the_patches_that_are_computed(
    kind: Any, computed: int
) -> None:
    plain = masked("tiny", 16, kind)
    encoder = EncoderConfig(preset="tiny", default_spacing_mm=SPACING, stem="convolutional")

    found = traced(lambda: kind(VolumeViT(encoder), PretextConfig()))

    embedding = 2 * 16**3 * 192
    expected = traced(plain).forward_flop + stem_flop(computed, 192) - computed * embedding
    assert found.forward_flop == expected


def test_a_stem_over_whole_crops_is_planned_at_its_full_cost() -> None:
    plain, dense = (
        traced(segmenter("light", stem=stem), precision="fp32").forward_flop
        for stem in ("patches", "convolutional")
    )

    assert dense - plain == stem_flop(216, 192) - 216 * 2 * 16**3 * 192


def test_simmim_encodes_all_tokens() -> None:
    n, patch, (width, depth) = 216, 16**3, SIZES["small"]

    trace = traced(masked("small", 16, SimMIM))

    head = 2 * 162 * width * patch
    assert trace.forward_flop == encoder_flop(n, n, width, depth, patch) + head


def test_all_three_kinds_of_attention_have_the_same_flop() -> None:
    build = masked("tiny", 8)

    cpu = [traced(build, on_gpu=False, precision=word).forward_flop for word in ("bf16", "fp32")]

    assert set(cpu) == {traced(build).forward_flop}
    assert attention.choose_attention(torch.device("cpu"), torch.bfloat16, 54) == "plain"


def test_other_threads_keep_their_attention_while_a_gpu_is_planned_for() -> None:
    def asked() -> str:
        return attention.choose_attention(torch.device("cpu"), torch.bfloat16, 54)

    with ThreadPoolExecutor(1) as other, trace._attention_of(on_gpu=True):
        here, there = asked(), other.submit(asked).result()

    assert (here, there) == ("sdpa", "plain")
    assert asked() == "plain"


def test_flop_are_what_torchs_counter_finds_on_the_meta_device() -> None:
    task = without_content(segmenter("hybrid"))
    voxels = torch.empty((1, 1, 32, 48, 64), device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        task.network(voxels, SPACING)

    trace = traced(segmenter("hybrid"), crop_size=(32, 48, 64), precision="fp32")

    assert trace.forward_flop == counter.get_total_flops()


def segmenter(decoder: Any, preset: Any = "tiny", classes: int = 14, **encoder: Any) -> Any:
    """Makes the supervised task."""
    config = EncoderConfig(preset=preset, default_spacing_mm=SPACING, **encoder)

    def build() -> Segmentation:
        network = UNETR(VolumeViT(config), classes, DecoderConfig(name=decoder))
        return Segmentation(network, SegmentationConfig(), classes)

    return build


def test_unetr_has_the_parameters_and_the_flop_of_monais() -> None:
    """92,784,046 parameters and 146.4 GFLOP: MONAI's UNETR base/16, 14 classes, 96 cubed."""
    monai = pytest.importorskip("monai.networks.nets")
    with torch.device("meta"):
        theirs = monai.UNETR(1, 14, (96, 96, 96))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        theirs(torch.empty((1, 1, 96, 96, 96), device="meta"))
    ours = segmenter("unetr", "base", positions="learned", learned_grid=(6, 6, 6), qkv_bias=False)

    trace = traced(ours, precision="fp32")

    parameters = sum(p.numel() for p in without_content(ours).parameters())
    # MONAI's blocks hold a norm for a cross attention that is off; ours norms the three inner taps.
    used = [p for name, p in theirs.named_parameters() if "cross_attn" not in name]
    assert parameters - 3 * 2 * 768 == sum(p.numel() for p in used) == 92_784_046
    assert trace.forward_flop == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert trace.forward_flop / 1e9 == pytest.approx(146.4, abs=0.1)


def test_a_block_keeps_what_was_measured_a_token() -> None:
    """PERFORMANCE 10.2: 36.1 w with an fp32 stream in bf16, 64.1 w in fp32; here 32 blocks more."""
    n, width = 432, 384

    def kept(depth: int, precision: str) -> float:
        encoder = EncoderConfig(
            preset="small", depth=depth, patch=(8, 8, 8), default_spacing_mm=SPACING
        )
        build = lambda: SimMIM(VolumeViT(encoder), PretextConfig(name="simmim"))  # noqa: E731
        trace = traced(build, crop_size=(48, 72, 64), precision=precision)
        parameters = sum(p.numel() for p in without_content(build).encoder.blocks.parameters())
        copies = 2 * parameters if precision == "bf16" else 0
        return trace.saved_bytes - copies

    for precision, share in (("bf16", 36.1), ("fp32", 64.1)):
        block = (kept(6, precision) - kept(2, precision)) / 4
        assert block / n / width == pytest.approx(share, rel=0.03)


def test_checkpointing_keeps_less_and_its_recomputation_is_not_the_models() -> None:
    plain, spared = (
        traced(segmenter("light", patch=(8, 8, 8), checkpointing=on), crop_size=(48, 64, 40))
        for on in (False, True)
    )

    assert spared.saved_bytes < 0.6 * plain.saved_bytes
    assert spared.peak_bytes < plain.peak_bytes
    assert spared.model_flop == plain.model_flop
    assert sum(op.flop for op in spared.ops) > sum(op.flop for op in plain.ops)


def test_what_is_saved_is_what_a_real_step_saves() -> None:
    """The oracle counts the storages that autograd packs in a real step, weights left out."""
    size: Triple = (48, 32, 64)
    build = segmenter("half", classes=3)
    task = build()
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    seen: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return tensor

    x, y, z = size
    ramp = torch.linspace(-1, 1, x)[:, None, None] + torch.linspace(0, 2, z)
    voxels = (ramp + torch.zeros(2, 1, x, y, z)).contiguous()
    batch = CropBatch(
        voxels,
        torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
        ("a", "b"),
        torch.arange(2),
        (voxels[:, 0] > 0).to(torch.uint8),
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outcome = task(batch, Moment(0, 1, RandomStream(0, 0)))
    saved = sum(storage.nbytes() for storage in seen.values())
    del outcome
    gc.collect()

    trace = traced(build, crops=2, crop_size=size, precision="fp32", on_gpu=False)

    # The trace also has the crops and the few tensors that autograd does not need.
    assert saved <= trace.saved_bytes <= 1.1 * saved + 3 * voxels.nbytes


def test_memory_grows_with_the_batch_and_not_with_the_weights_alone() -> None:
    one, four = (traced(masked("tiny", 16), crops=crops) for crops in (1, 4))

    assert four.saved_bytes > one.saved_bytes
    assert four.forward_flop == 4 * one.forward_flop


class TwoViews(SimMIM):
    """A task that asks for two views of every crop."""

    needs = BatchNeeds(views=2)


def test_a_crop_of_a_task_that_needs_two_views_is_two_crops_work() -> None:
    size: Triple = (32, 48, 64)

    views = traced(masked("tiny", 16, TwoViews), crop_size=size)

    crops = traced(masked("tiny", 16, SimMIM), crop_size=size, crops=2)
    assert (views.crops, crops.crops) == (1, 2)
    assert views.forward_flop == crops.forward_flop
    assert views.saved_bytes == crops.saved_bytes
