"""The linear start: its closed form, its cells, and a decoder that is silent at first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.regions import SCHEMES
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.linear_start import RIDGE, cell_shares, labels_on, start_linearly
from mim3d.objectives.segmentation import Segmentation

SIZE = (11, 13, 7)
ENCODER = EncoderConfig(
    width=24, depth=4, heads=2, channels=2, patch=(4, 4, 2), default_spacing_mm=(1.0, 2.0, 0.5)
)


def task(name: str = "light", direct: str = "linear", regions: bool = False) -> Segmentation:
    torch.manual_seed(0)
    decoder = DecoderConfig(name=name, feature_size=4, direct=direct)  # type: ignore[arg-type]
    scheme = SCHEMES["brats2021"] if regions else None
    config = SegmentationConfig(regions="brats2021" if regions else None)
    return Segmentation(
        UNETR(VolumeViT(ENCODER), 3, decoder), config, 4 if regions else 3, scheme,
        (0, 1, 2, 4) if regions else None,
    )  # fmt: skip


def batch(seed: int = 0, classes: int = 3, *, padded: bool = True) -> CropBatch:
    generator = torch.Generator().manual_seed(seed)
    voxels = torch.randn((2, 2, *SIZE), generator=generator)
    # what can be known of a voxel's class is told by its intensity
    labels = (voxels[:, 0] > 0.3).to(torch.uint8) + (voxels[:, 1] > 0.5).to(torch.uint8)
    labels = torch.where(labels == 2, classes - 1, labels).to(torch.uint8)
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[1, 9:] = False
    affine = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    return CropBatch(voxels, affine, ("a", "b"), torch.arange(2), labels, valid if padded else None)


def test_shares_are_counted_cell_by_cell() -> None:
    labels = torch.randint(0, 3, (2, 8, 4, 6), generator=torch.Generator().manual_seed(0))
    labels = labels.to(torch.uint8)
    labels[0, :2, :2, :3] = IGNORE_INDEX
    labels[0, 0, 0, 0] = 2

    shares, known = cell_shares(labels, (4, 4, 3), (2, 2, 1), 3)

    assert shares.shape == (2, 4, 4, 3)
    for sample in range(2):
        for token, (gx, gz) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            for cell, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                x, y, z = 4 * gx + 2 * i, 2 * j, 3 * gz
                box = labels[sample, x : x + 2, y : y + 2, z : z + 3].flatten().tolist()
                there = [label for label in box if label != IGNORE_INDEX]
                expected = [there.count(index) / len(there) for index in range(3)]
                assert shares[sample, token, cell].tolist() == pytest.approx(expected)
    assert known.all()
    labels[0, 0, 0, 0] = IGNORE_INDEX
    assert cell_shares(labels, (4, 4, 3), (2, 2, 1), 3)[1].tolist() == [
        [False, True, True, True],
        [True] * 4,
    ]


def test_the_closed_form_is_ridge_regression_on_standardised_features() -> None:
    made, crops = task(), batch(padded=False)
    path = made.network.direct

    found = start_linearly(made, [crops], refines=False)

    states, _ = made.network.encoded(crops.voxels, crops.spacing_mm, None)
    features = path.features(states).detach().flatten(0, 1).double().numpy()
    shares = np.zeros((2, 48, 3, 8))
    for sample in range(2):
        labels = np.full((12, 16, 8), IGNORE_INDEX)
        labels[:11, :13, :7] = crops.labels[sample]
        for token, (gx, gy, gz) in enumerate(np.ndindex(3, 4, 4)):
            for cell, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
                start = np.array([4 * gx + 2 * i, 4 * gy + 2 * j, 2 * gz + k])
                box = labels[start[0] : start[0] + 2, start[1] : start[1] + 2, start[2]]
                there = box[box != IGNORE_INDEX]
                for index in range(3):
                    share = (there == index).mean() if there.size else np.nan
                    shares[sample, token, index, cell] = share
    flat = shares.reshape(96, 24)
    known = ~np.isnan(flat).any(1)
    y = flat[known]
    x = features[known]
    x = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(24), x.T @ (y - y.mean(0)))
    guess = x @ weight + y.mean(0)
    mapped = path.linear(path.features(states)).detach().flatten(0, 1).double().numpy()[known]
    scale = (mapped / guess)[np.abs(guess) > 0.1].mean()
    np.testing.assert_allclose(mapped, scale * guess, atol=1e-3 * scale)
    assert found.tokens == known.sum()
    assert found.crops == 2

    # of all factors the one under which the labels are likeliest
    def entropy(factor: float) -> float:
        logits = (factor * guess).reshape(-1, 3, 8)
        logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float(-(logits * y.reshape(-1, 3, 8)).sum(1).mean())

    assert found.entropy == pytest.approx(entropy(scale), rel=1e-3)
    assert found.entropy <= min(entropy(scale * 2**0.5), entropy(scale / 2**0.5))
    assert found.entropy < found.chance


@pytest.mark.parametrize("regions", [False, True])
def test_from_the_ridge_cross_entropy_and_dice_of_the_cells_fall(regions: bool) -> None:
    crops = batch(classes=4 if regions else 3)
    seen: dict[bool, float] = {}
    for refines in (False, True):
        made = task(regions=regions)
        start_linearly(made, [crops], refines=refines)
        states, _ = made.network.encoded(crops.voxels, crops.spacing_mm, crops.valid)
        labels = labels_on(states.grid, crops.labels, crops.valid)
        shares, known = cell_shares(labels, (4, 4, 2), (2, 2, 2), 4 if regions else 3)
        if regions:
            # classes 0, 1, 2, 4: tumour core holds 1 and 4, the whole tumour all, enhancing 4
            core, whole, enhancing = ([1, 3], [1, 2, 3], [3])
            shares = torch.stack([shares[..., r].sum(-1) for r in (core, whole, enhancing)], -1)
        truth = shares[known].double().numpy()
        logits = made.network.direct.linear(made.network.direct.features(states))[known]
        logits = logits.detach().double().numpy().reshape(-1, 3, 8).swapaxes(1, 2)
        if regions:
            guess = 1 / (1 + np.exp(-logits))
            entropy = -(truth * np.log(guess) + (1 - truth) * np.log(1 - guess)).mean()
        else:
            guess = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            entropy = -(truth * np.log(guess)).sum(-1).mean()
        both, total = (guess * truth).sum((0, 1)), (guess + truth).sum((0, 1))
        seen[refines] = float(entropy + 1 - (2 * both / total).mean())

    before, after = seen.values()
    assert after < before - 0.05


@pytest.mark.parametrize("name", ["light", "unetr", "half", "hybrid"])
def test_training_starts_from_the_probe_and_everything_learns(name: str) -> None:
    made, crops = task(name), batch()

    start_linearly(made, [crops])

    network = made.network
    states, voxels = network.encoded(crops.voxels, crops.spacing_mm, crops.valid)
    direct = network.direct(states, voxels)
    torch.testing.assert_close(network(crops.voxels, crops.spacing_mm, crops.valid), direct)
    network(crops.voxels, crops.spacing_mm, crops.valid).square().sum().backward()
    assert network.decoder.out.weight.grad.any()
    assert network.encoder.blocks[0].attention.qkv.weight.grad.any()


def test_regions_start_undecided_at_a_half() -> None:
    made, crops = task(regions=True), batch(classes=4)

    found = start_linearly(made, [crops])

    assert found.entropy < found.chance


def test_a_linear_start_knows_more_than_chance_on_other_crops() -> None:
    def blocky(seed: int) -> CropBatch:
        crops = batch(seed)
        coarse = torch.randn((2, 2, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
        voxels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(2, 4)
        voxels = voxels[:, :, :11, :13, :7].contiguous()
        labels = (voxels[:, 0] > 0.3).to(torch.uint8) + (voxels[:, 1] > 0.5).to(torch.uint8)
        return replace(crops, voxels=voxels, labels=labels)

    other, right = blocky(99), {}
    for refines in (False, True):
        made = task()
        start_linearly(made, [blocky(seed) for seed in range(6)], refines=refines)
        logits = made.network(other.voxels, other.spacing_mm, other.valid)
        right[refines] = (logits.argmax(1) == other.labels)[other.valid].float().mean()

    largest = torch.bincount(other.labels[other.valid].flatten()).max() / other.valid.sum()
    assert right[False] > largest + 0.1
    assert right[True] > right[False]


def test_without_a_path_there_is_nothing_to_start() -> None:
    with pytest.raises(ConfigError, match="decoder.direct"):
        start_linearly(task(direct="none"), [batch()])


def test_modes_are_left_as_they_were_and_padding_changes_nothing() -> None:
    one, other = task(), task()
    crops = batch()
    noisy = replace(crops, labels=crops.labels.clone(), voxels=crops.voxels.clone())
    noisy.labels[1, 9:] = 1
    noisy.voxels[1, :, 9:] = torch.nan
    one.train()

    start_linearly(one, [crops])
    start_linearly(other, [noisy])

    assert one.network.training
    torch.testing.assert_close(one.network.direct.linear.weight, other.network.direct.linear.weight)


def test_where_hardly_anything_is_labelled_it_is_refused() -> None:
    crops = batch()
    crops.labels[:] = IGNORE_INDEX
    made = task()

    with pytest.raises(UserError, match="0 were found") as caught:
        start_linearly(made, [crops])

    assert made.network.direct.linear.weight.isfinite().all()
    assert "no thinner than a cell, 2 x 2 x 1 voxels" in str(caught.value.remedy)
