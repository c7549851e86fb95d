"""Places at which a step would wait for a GPU are found without one."""

from __future__ import annotations

import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.segmentation import Segmentation
from mim3d.objectives.simmim import SimMIM
from mim3d.workflows.throughput.inputs import batches, moment
from mim3d.workflows.throughput.syncs import host_syncs

CPU = torch.device("cpu")


@pytest.fixture
def far():
    return torch.empty(3, 4, device="meta")


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda far: far.sum().item(), "reads a number"),
        (lambda far: bool((far > 0).all()), "reads a number"),
        (lambda far: far.tolist(), "`tolist`"),
        (lambda far: torch.tensor([1, 2], device=far.device), "`torch.tensor`"),
        (lambda far: torch.as_tensor([1.0], device=far.device), "`torch.as_tensor`"),
        (lambda far: torch.zeros(3).to(far.device), "the host to the device"),
        (lambda far: far[0].copy_(torch.zeros(4)), "the host to the device"),
    ],
)
def test_what_waits_is_found(far, call, found):
    places = host_syncs(lambda: call(far))

    assert len(places) == 1
    assert found in places[0]


def test_an_operation_of_unknown_size_is_found(far):
    found = []

    def call():
        try:
            far[far > 0]
        except (NotImplementedError, RuntimeError):  # the meta device cannot know the size either
            found.append(1)

    assert "unknown size" in host_syncs(call)[0]


def test_what_does_not_wait_is_not_found(far):
    def call():
        far.sum().add(1).sqrt()
        far.gather(1, far.argsort(dim=1)[:, :2])
        far.new_zeros(3).add_(2.0)
        torch.zeros(3).to(far.device, non_blocking=True)
        torch.tensor([1, 2]).tolist()
        torch.arange(5, device=far.device)

    assert host_syncs(call) == []


def encoder(**fields):
    return VolumeViT(EncoderConfig(preset="tiny", depth=4, **fields))


def segmentation():
    network = UNETR(encoder(), 5, DecoderConfig("half"))
    return Segmentation(network, SegmentationConfig(), 5)


GUIDED = PretextConfig(
    masking=("tube", "slab"), mask_ratio=(0.4, 0.6), drop_ratio=0.3,
    guide=GuideConfig(by="map", share=(0.5, 0.5), temperature=0.0, polarity="low"),
)  # fmt: skip
TASKS = {
    "mae full": lambda: MaskedAutoencoder(encoder(), PretextConfig()),
    "mae cross": lambda: MaskedAutoencoder(
        encoder(positions="rotary_mm"), PretextConfig(decoder="cross", decode_fraction=0.25)
    ),
    "simmim": lambda: SimMIM(encoder(), PretextConfig(name="simmim")),
    "mae guided": lambda: MaskedAutoencoder(encoder(), GUIDED),
    "segmentation": segmentation,
}


@pytest.mark.parametrize("name", TASKS)
def test_a_step_without_padding_never_waits_for_the_device(name):
    """Found when it was written: `tolist` of crop ids and a copy of their keys (objectives.base),
    `torch.tensor(…, device=…)` in tokens.masking and tokens.grid, `bool(counted.all())` in
    objectives.losses.
    """
    task = TASKS[name]().to("meta")
    batch = batches(2, CPU, side=64, classes=5, rotated=1)[0].to("meta")

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = task(batch, moment(3)).loss
        loss.backward()

    assert host_syncs(step) == []
