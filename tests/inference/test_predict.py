"""From a volume to labels: preparation, the way back, what outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.sections import DecoderConfig, EncoderConfig, InferenceConfig
from mim3d.data.classes import ClassTable
from mim3d.data.files import read_volume
from mim3d.data.prepare.volume import VolumeRule, prepare_volume
from mim3d.data.regions import SCHEMES
from mim3d.data.resample import resample_to
from mim3d.data.volume import Volume
from mim3d.foundation.errors import UserError
from mim3d.inference.blinding import blind
from mim3d.inference.predict import predict, predict_probabilities, predict_volume
from mim3d.inference.seen import body_of
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import WindowCount, plan_sweep, window_starts, window_weights
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT

WINDOW = (16, 16, 8)
CONFIG = InferenceConfig(window=WINDOW)
CLASSES = ClassTable.from_values([0, 2, 700], {0: "air", 2: "fat", 700: "bone"})
HU = VolumeRule(modalities=("ct",), window_hu=(-1000.0, 1000.0), body_margin_mm=3.0)


class Nearest(nn.Module):
    """The class whose centre is nearest to the voxel's intensity."""

    def __init__(self, centres: Sequence[float], sharpness: float = 1.0) -> None:
        super().__init__()
        self.centres = torch.tensor(centres)[:, None, None, None]
        self.sharpness = sharpness

    def forward(self, voxels: Tensor) -> Tensor:
        return -self.sharpness * (voxels[:, :1] - self.centres) ** 2


def volume_of(tmp_path: Path, voxels: np.ndarray, spacing: Sequence[float]) -> Volume:
    """A volume as it comes from a file stored in LPS order."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    return read_volume(tmp_path / "scan.nii.gz")


def body(shape: tuple[int, int, int]) -> np.ndarray:
    """CT in HU: air, an off-centre ellipsoid of fat and within it a smaller one of bone."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij"))
    centre = np.array([0.2, -0.15, 0.1])[:, None, None, None]
    away = np.sqrt((((grid - centre) / np.array([0.6, 0.5, 0.7])[:, None, None, None]) ** 2).sum(0))
    hu = np.where(away < 1, -100, -1000)
    return np.where(away < 0.4, 800, hu).astype(np.int16)


def truth_of(volume: Volume) -> np.ndarray:
    return np.select([volume.voxels[0] > 400, volume.voxels[0] > -500], [700, 2], 0)


@pytest.fixture
def torso(tmp_path: Path) -> Volume:
    return volume_of(tmp_path, body((41, 37, 19)), (1.2, 1.5, 3.0))


def segmenter(rule: VolumeRule | None = HU, **changes: object) -> Segmenter:
    # Normalised centres of air, fat and bone under the window of -1000 to 1000.
    known = Segmenter(Nearest([0.0, 0.45, 0.9], 100.0), WINDOW, CLASSES, rule=rule)
    return replace(known, **changes)


def test_labels_are_the_values_of_the_class_table_on_the_volumes_own_grid(torso: Volume) -> None:
    labels = predict_volume(segmenter(), torso)

    assert labels.voxels.dtype == np.uint16
    assert np.array_equal(labels.voxels[0], truth_of(torso))
    assert labels.origin is torso.origin
    assert np.array_equal(labels.affine, torso.affine)


def test_the_network_sees_exactly_what_training_saw(torso: Volume) -> None:
    rule = replace(HU, spacing_mm=(2.0, 2.0, 2.0))
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor) -> Tensor:
            assert spacing_mm.tolist() == [pytest.approx([2.0, 2.0, 2.0])]
            assert valid is None
            seen.append(voxels)
            return voxels.expand(-1, 3, -1, -1, -1)

    prepared = prepare_volume(torso, rule).normalised
    whole = replace(CONFIG, window=prepared.shape[1:])
    predict_volume(segmenter(rule, network=Spy()), torso, whole)

    assert np.array_equal(seen[0][0].numpy(), prepared)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.9, 1.9, 1.4)])
def test_resampled_logits_come_back_to_the_right_place(
    torso: Volume, spacing: tuple[float, float, float]
) -> None:
    labels = predict_volume(segmenter(replace(HU, spacing_mm=spacing)), torso).voxels[0]

    truth = truth_of(torso)
    for value in (2, 700):
        overlap = 2 * ((labels == value) & (truth == value)).sum()
        dice = overlap / ((labels == value).sum() + (truth == value).sum())
        # Partial volume at 2 mm moves the border by part of a voxel; a shift by one voxel of the
        # file gives less than 0.93.
        assert dice > 0.95
        apart = np.argwhere(labels == value).mean(0) - np.argwhere(truth == value).mean(0)
        assert np.abs(apart).max() < 0.15


def test_what_was_cropped_away_is_background_for_certain(torso: Volume) -> None:
    rule = replace(HU, body_margin_mm=0.0)
    everywhere_bone = Nearest([9.0, 8.0, 0.0])

    result = predict(
        segmenter(rule, network=everywhere_bone), torso, replace(CONFIG, save_probabilities=True)
    )

    inside = np.zeros(torso.shape, bool)
    places = np.argwhere(torso.voxels[0] > -500)
    inside[tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))] = True
    assert not inside.all()
    assert (result.labels.voxels[0][inside] == 700).all()
    assert (result.labels.voxels[0][~inside] == 0).all()
    assert result.probabilities is not None
    assert (result.probabilities.voxels[0][~inside] == 1).all()


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_probabilities_are_those_of_the_labels(
    torso: Volume, spacing: tuple[float, float, float] | None
) -> None:
    model = segmenter(replace(HU, spacing_mm=spacing))

    result = predict(model, torso, replace(CONFIG, save_probabilities=True))

    assert result.probabilities is not None
    probabilities = result.probabilities.voxels
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-6)
    best = CLASSES.to_value(probabilities.argmax(axis=0))
    assert np.array_equal(best, result.labels.voxels[0])
    alone = predict_probabilities(model, torso, CONFIG)
    assert np.array_equal(alone.voxels, probabilities)


def test_several_runs_average_their_probabilities(torso: Volume) -> None:
    sure, unsure = (
        segmenter(network=Nearest(centres, sharpness))
        for centres, sharpness in (([0.0, 0.45, 0.9], 9.0), ([0.9, 0.45, 0.0], 2.0))
    )
    config = replace(CONFIG, save_probabilities=True)

    result = predict([sure, unsure], torso, config)

    expected = sum(predict_probabilities(one, torso, CONFIG).voxels for one in (sure, unsure)) / 2
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, expected, atol=1e-6)
    assert np.array_equal(result.labels.voxels[0], CLASSES.to_value(expected.argmax(axis=0)))


def test_runs_of_other_classes_are_not_averaged(torso: Volume) -> None:
    other = segmenter(classes=ClassTable.from_values([0, 1, 2]))

    with pytest.raises(UserError, match="different classes"):
        predict_volume([segmenter(), other], torso, CONFIG)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_regions_become_the_schemes_values(
    torso: Volume, spacing: tuple[float, float, float] | None
) -> None:
    class Regions(nn.Module):
        """TC: above fat; WT: above air; ET: never."""

        def forward(self, voxels: Tensor) -> Tensor:
            return torch.cat([voxels - 0.7, voxels - 0.2, voxels - 2], dim=1)

    model = Segmenter(
        Regions(), WINDOW, regions=SCHEMES["brats2021"], rule=replace(HU, spacing_mm=spacing)
    )

    labels = predict_volume(model, torso)

    truth = truth_of(torso)
    expected = np.select([truth == 700, truth == 2], [1, 2], 0)
    same = (labels.voxels[0] == expected).mean()
    assert same == 1 if spacing is None else same > 0.98


def test_the_largest_component_is_kept_on_request(tmp_path: Path) -> None:
    voxels = np.zeros((20, 21, 9), np.int16)
    voxels[2:9, 3:9, 1:6] = 1
    voxels[15:17, 15:17, 6:8] = 1
    volume = volume_of(tmp_path, voxels, (1, 1, 2))
    network = Nearest([0.0, 1.0])

    all_of_it = predict_volume(network, volume, CONFIG)
    largest = predict_volume(network, volume, replace(CONFIG, largest_component=True))

    assert all_of_it.voxels.sum() == 7 * 6 * 5 + 2 * 2 * 2
    assert largest.voxels.sum() == 7 * 6 * 5


def test_a_module_with_one_output_is_a_sigmoid(tmp_path: Path) -> None:
    class One(nn.Module):
        def forward(self, voxels: Tensor) -> Tensor:
            return voxels - 0.5

    voxels = (np.random.default_rng(0).random((11, 13, 7)) > 0.5).astype(np.int16)
    volume = volume_of(tmp_path, voxels, (1, 1, 2))

    assert np.array_equal(predict_volume(One(), volume).voxels, volume.voxels)


def test_volumes_of_other_channels_are_refused_by_name(torso: Volume) -> None:
    model = segmenter(channel_names=("flair", "t1"))

    with pytest.raises(UserError, match=r"1 channel.*expects 2: `flair`, `t1`"):
        predict_volume(model, torso)


def test_a_network_with_other_outputs_than_classes_is_refused(torso: Volume) -> None:
    with pytest.raises(UserError, match="2 outputs for 3"):
        predict_volume(segmenter(network=Nearest([0.0, 1.0])), torso)


def test_training_mode_is_restored_part_by_part(torso: Volume) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Dropout(0.9), nn.Dropout(0.9)

        def forward(self, voxels: Tensor) -> Tensor:
            assert not self.one.training
            return self.two(self.one(voxels)).repeat(1, 3, 1, 1, 1)

    network = Parts()
    network.two.eval()

    predict_volume(segmenter(network=network), torso)

    assert (network.training, network.one.training, network.two.training) == (True, True, False)


def tiny_unetr(**encoder: object) -> UNETR:
    torch.manual_seed(3)
    config = EncoderConfig(preset="tiny", width=96, depth=4, heads=3, patch=(8, 8, 4), **encoder)
    return UNETR(VolumeViT(config), 3, DecoderConfig(feature_size=4)).eval()


def test_a_unetr_predicts_a_volume_smaller_than_its_window(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((11, 13, 7)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))
    network = tiny_unetr()

    labels = predict_volume(network, volume, InferenceConfig(window=(16, 16, 8)))

    assert labels.voxels.shape == (1, 11, 13, 7)
    assert labels.voxels.max() <= 2
    padded = np.zeros((1, 1, 16, 16, 8), np.float32)
    padded[0, :, 2:13, 1:14, :7] = volume.voxels
    valid = np.zeros((1, 16, 16, 8), bool)
    valid[0, 2:13, 1:14, :7] = True
    with torch.no_grad():
        logits = network(torch.from_numpy(padded), (1.0, 1.2, 2.5), torch.from_numpy(valid))
    expected = logits[0, :, 2:13, 1:14, :7].argmax(0)
    assert np.array_equal(labels.voxels[0], expected.numpy())


def test_without_a_window_a_module_gets_one_that_suits_the_volume(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((11, 23, 7)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))

    class Spy(nn.Module):
        def forward(self, voxels: Tensor) -> Tensor:
            assert voxels.shape == (1, 1, 16, 32, 16)
            return voxels.repeat(1, 2, 1, 1, 1)

    assert predict_volume(Spy(), volume).shape == (11, 23, 7)


def test_bf16_labels_are_nearly_those_of_fp32(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((20, 17, 9)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))
    network = tiny_unetr()

    exact, fast = (
        predict_probabilities(Segmenter(network, (16, 16, 8), precision=precision), volume)
        for precision in ("fp32", "bf16")
    )

    # Three significant digits of bf16 through 4 blocks and a decoder.
    assert np.abs(exact.voxels - fast.voxels).max() < 0.05
    assert not np.array_equal(exact.voxels, fast.voxels)


def test_a_blind_encoder_hands_on_zeros_and_sees_again_afterwards(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((16, 16, 8)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))
    light = replace(DecoderConfig(), name="light", feature_size=4)
    network = UNETR(tiny_unetr().encoder, 3, light).eval()
    config = InferenceConfig(window=(16, 16, 8))
    before = predict_probabilities(network, volume, config).voxels

    with blind(network):
        blinded = predict_probabilities(network, volume, config).voxels
        inverted = predict_probabilities(network, volume.with_voxels(-volume.voxels), config).voxels

    # The light decoder has no path from the image: blind, it says the same of any image.
    assert np.array_equal(blinded, inverted)
    assert not np.array_equal(blinded, before)
    assert np.array_equal(predict_probabilities(network, volume, config).voxels, before)


def test_blinding_asks_for_an_encoder() -> None:
    with pytest.raises(UserError, match="no `encoder`"), blind(nn.Linear(2, 2)):
        pass


class Placed(nn.Module):
    """Outputs that depend on intensity, surroundings and place in the window, without ties."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blur = nn.Conv3d(1, outputs, 3, padding=1)
        self.places = nn.Conv3d(3, outputs, 1)

    def forward(self, voxels: Tensor) -> Tensor:
        axes = [torch.linspace(-1, 1, side) ** 2 for side in voxels.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        # Bounded, so that float32 tells apart what 16 bits of HU make.
        return 3 * self.blur(nn.functional.softsign(voxels)) + self.places(places)


def slow_logits(model: Segmenter, volume: Volume, config: InferenceConfig) -> np.ndarray:
    """Mean logits of the whole volume on its own grid, `k x y z`, by a loop over all windows."""
    if model.rule is None:
        seen, affine = volume.voxels.astype(np.float32), volume.affine
    else:
        prepared = prepare_volume(volume, model.rule)
        seen, affine = prepared.normalised, prepared.affine
    sweep = plan_sweep(seen.shape[1:], config.window, config.overlap)
    padded = np.zeros((len(seen), *sweep.size), np.float32)
    padded[(slice(None), *sweep.inside)] = seen
    weight = window_weights(config.window, config.weights).numpy()
    total, mass = 0.0, np.zeros(sweep.size)
    for start in sweep.starts:
        box = (slice(None), *sweep.box(start))
        crop = torch.from_numpy(padded[box])[None]
        with torch.no_grad():
            found = [
                model.network(crop.flip(axes)).flip(axes)[0].numpy()
                for count in range(len(config.flips) + 1)
                for chosen in combinations(config.flips, count)
                for axes in [[2 + "xyz".index(axis) for axis in chosen]]
            ]
        if not isinstance(total, np.ndarray):
            total = np.zeros((len(found[0]), *sweep.size))
        total[box] += np.mean(found, axis=0) * weight
        mass[box[1:]] += weight
    mean = (total / mass)[(slice(None), *sweep.inside)]
    outside = [-np.inf] * len(mean)
    if len(mean) > 1 and model.regions is None:
        outside[0] = 0.0
    return resample_to(mean, affine, volume.affine, volume.shape, outside=outside)


def slow_labels(model: Segmenter, logits: np.ndarray) -> np.ndarray:
    if model.regions is not None:
        return model.regions.to_values(logits > 0)
    if len(logits) == 1:
        return CLASSES.to_value((logits[0] > 0).astype(np.uint8))
    return CLASSES.to_value(logits.argmax(axis=0))


def slow_probabilities(model: Segmenter, logits: np.ndarray) -> np.ndarray:
    if model.regions is not None:
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max(axis=0))
    return raised / raised.sum(axis=0)


GRIDS = {
    "as-it-is": None,
    "cropped": HU,
    "not-cropped": replace(HU, crop_to_body=False),
    "coarser": replace(HU, spacing_mm=(2.0, 2.0, 4.0)),
    "finer": replace(HU, spacing_mm=(0.9, 1.1, 2.0)),
    "mixed": replace(HU, spacing_mm=(0.9, 1.9, 1.4), crop_to_body=False),
}
WAYS = [
    InferenceConfig(window=WINDOW, overlap=0.5),
    InferenceConfig(window=WINDOW, overlap=0.0, weights="constant", windows_per_batch=3),
    InferenceConfig(window=(12, 40, 6), overlap=0.25, flips=("x", "z")),
    InferenceConfig(window=(64, 64, 64), flips=("y",)),
    InferenceConfig(window=(48, 16, 32), overlap=0.8),
]


@pytest.mark.parametrize("config", WAYS, ids=lambda config: "x".join(map(str, config.window)))
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(41, 37, 19), (11, 13, 7)])
def test_rows_of_logits_give_the_labels_of_whole_logits(
    shape: tuple[int, int, int], grid: str, config: InferenceConfig, tmp_path: Path
) -> None:
    """Caught: a row of the network's grid dropped that the next row of the volume lies beside."""
    volume = volume_of(tmp_path, noisy(shape), (1.2, 1.5, 3.0))
    model = segmenter(GRIDS[grid], network=Placed())
    logits = slow_logits(model, volume, config)

    result = predict(model, volume, replace(config, skip_air=False, save_probabilities=True))

    expected = slow_labels(model, logits)
    alone = predict_volume(model, volume, replace(config, skip_air=False))
    assert np.array_equal(alone.voxels, result.labels.voxels)
    # Where two classes are equal but for rounding either may win.
    best = np.sort(logits, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(result.labels.voxels[0][clear], expected[clear])
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, slow_probabilities(model, logits), atol=2e-5)


def noisy(shape: tuple[int, int, int]) -> np.ndarray:
    """The body with a texture, so that nothing in it is constant."""
    random = np.random.default_rng(5)
    hu = body(shape)
    return np.where(hu > -500, hu + random.integers(-200, 200, shape), hu).astype(np.int16)


@pytest.mark.parametrize("grid", GRIDS)
def test_rows_of_logits_give_the_regions_of_whole_logits(grid: str, tmp_path: Path) -> None:
    volume = volume_of(tmp_path, noisy((23, 37, 41)), (1.2, 1.5, 3.0))
    model = Segmenter(Placed(), WINDOW, regions=SCHEMES["brats2021"], rule=GRIDS[grid])
    config = replace(CONFIG, skip_air=False)
    logits = slow_logits(model, volume, config)

    result = predict(model, volume, replace(config, save_probabilities=True))

    clear = (np.abs(logits) > 1e-4).all(axis=0)
    expected = slow_labels(model, logits)
    assert clear.mean() > 0.98
    assert np.array_equal(result.labels.voxels[0][clear], expected[clear])
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, slow_probabilities(model, logits), atol=2e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_runs_on_other_grids_average_their_probabilities(grid: str, torso: Volume) -> None:
    one = segmenter(HU, network=Placed())
    other = segmenter(GRIDS[grid], network=Placed().double().float(), window=(24, 8, 8))
    for weight in other.network.parameters():
        weight.data *= -0.7
    config = replace(CONFIG, skip_air=False)

    result = predict([one, other], torso, replace(config, save_probabilities=True))

    expected = np.mean(
        [slow_probabilities(run, slow_logits(run, torso, config)) for run in (one, other)], axis=0
    )
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, expected, atol=2e-5)
    assert np.array_equal(
        result.labels.voxels[0], CLASSES.to_value(result.probabilities.voxels.argmax(axis=0))
    )


def long_scan(tmp_path: Path) -> Volume:
    """Two small bodies far apart along y, so that windows between them hold nothing but air."""
    hu = np.full((22, 90, 12), -1000, np.int16)
    hu[4:14, 3:11, 2:9] = noisy((10, 8, 7)).clip(-100)
    hu[9:20, 78:88, 3:10] = noisy((11, 10, 7)).clip(-100)
    return volume_of(tmp_path, hu, (1.2, 1.5, 3.0))


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
@pytest.mark.parametrize("outputs", ["classes", "regions"])
def test_windows_of_air_are_skipped_and_the_rest_stays_as_it_is(
    spacing: tuple[float, float, float] | None, outputs: str, tmp_path: Path
) -> None:
    volume = long_scan(tmp_path)
    model = segmenter(replace(HU, spacing_mm=spacing), network=Placed())
    if outputs == "regions":
        model = replace(model, classes=None, regions=SCHEMES["brats2021"])
    config = replace(CONFIG, overlap=0.0, save_probabilities=True)

    skipping = predict(model, volume, config)
    everything = predict(model, volume, replace(config, skip_air=False))

    assert everything.windows.skipped == 0
    assert skipping.windows.skipped > 0
    total = skipping.windows.run + skipping.windows.skipped
    assert total == everything.windows.run
    # Without overlap a voxel is in one window; on the network's grid that window ran or did not.
    prepared = prepare_volume(volume, model.rule)
    sweep = plan_sweep(prepared.voxels.shape[1:], WINDOW, 0.0, body_of(prepared))
    assert sweep.count == skipping.windows
    ran = np.zeros(sweep.size, np.float32)
    for start in sweep.starts:
        ran[sweep.box(start)] = 1
    ran = ran[sweep.inside]
    there = resample_to(ran[None], prepared.affine, volume.affine, volume.shape)[0]
    assert skipping.probabilities is not None
    assert everything.probabilities is not None
    same = there > 1 - 1e-5
    hidden = there < 1e-5
    assert same.any()
    assert hidden.any()
    found, expected = skipping.probabilities.voxels, everything.probabilities.voxels
    assert np.allclose(found[:, same], expected[:, same], atol=1e-6)
    assert np.array_equal(skipping.labels.voxels[0][same], everything.labels.voxels[0][same])
    background = np.array([0, 0, 0] if outputs == "regions" else [1, 0, 0])[:, None]
    assert np.allclose(found[:, hidden], background, atol=1e-6)
    assert (skipping.labels.voxels[0][hidden] == 0).all()
    assert (everything.labels.voxels[0][hidden] != 0).any()


def test_where_windows_overlap_the_ones_that_run_count_alone(tmp_path: Path) -> None:
    volume = long_scan(tmp_path)
    model = segmenter(replace(HU, crop_to_body=False), network=Placed())
    config = replace(CONFIG, overlap=0.5, save_probabilities=True)
    prepared = prepare_volume(volume, model.rule)
    sweep = plan_sweep(volume.shape, WINDOW, 0.5, body_of(prepared))
    total, mass = np.zeros((3, *sweep.size), np.float32), np.zeros(sweep.size, np.float32)
    weight = window_weights(WINDOW, "gaussian").numpy()
    for start in sweep.starts:
        crop = torch.from_numpy(prepared.normalised[(slice(None), *sweep.box(start))])[None]
        with torch.no_grad():
            total[(slice(None), *sweep.box(start))] += model.network(crop)[0].numpy() * weight
        mass[sweep.box(start)] += weight

    result = predict(model, volume, config)

    assert result.windows.skipped > 0
    expected = slow_probabilities(model, total / np.where(mass, mass, 1))
    expected[:, mass == 0] = np.array([1, 0, 0])[:, None]
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.voxels, expected, atol=2e-5)
    only_labels = predict_volume(model, volume, config)
    assert np.array_equal(only_labels.voxels, result.labels.voxels)


def test_a_module_without_a_rule_knows_no_air_and_skips_nothing(tmp_path: Path) -> None:
    volume = long_scan(tmp_path)

    result = predict(Placed(), volume, CONFIG)

    assert result.windows == WindowCount(len(window_starts(volume.shape, WINDOW, 0.5)), 0)


def test_windows_of_several_runs_are_counted_together(tmp_path: Path) -> None:
    volume = long_scan(tmp_path)
    model = segmenter(network=Placed())

    once, twice = predict(model, volume, CONFIG), predict([model, model], volume, CONFIG)

    assert twice.windows == once.windows + once.windows
    assert once.windows.skipped > 0


def test_progress_counts_the_windows_that_run(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []

    result = predict(
        segmenter(network=Placed()), long_scan(tmp_path), CONFIG,
        progress=lambda *now: said.append(now),
    )  # fmt: skip

    assert said[-1] == (result.windows.run, result.windows.run)


@pytest.mark.parametrize("decoder", ["unetr", "light"])
@pytest.mark.parametrize("positions", ["sincos_mm", "rotary_mm"])
def test_a_window_may_be_larger_than_the_crops_of_training(
    decoder: str, positions: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0).standard_normal((35, 30, 17)).astype(np.float32)
    volume = volume_of(tmp_path, random, (1.0, 1.2, 2.5))
    encoder = tiny_unetr(positions=positions).encoder
    network = UNETR(encoder, 3, replace(DecoderConfig(), name=decoder, feature_size=4)).eval()
    trained = Segmenter(network, (16, 16, 8))
    larger = InferenceConfig(window=(40, 32, 20))

    found = predict_probabilities(trained, volume, larger).voxels

    padded = np.zeros((1, 1, 40, 32, 20), np.float32)
    padded[0, :, 2:37, 1:31, 1:18] = volume.voxels
    valid = np.zeros((1, 40, 32, 20), bool)
    valid[0, 2:37, 1:31, 1:18] = True
    with torch.no_grad():
        logits = network(torch.from_numpy(padded), (1.0, 1.2, 2.5), torch.from_numpy(valid))
    expected = logits.softmax(1)[0, :, 2:37, 1:31, 1:18].numpy()
    assert np.allclose(found, expected, atol=1e-5)
    assert predict_volume(trained, volume, InferenceConfig(window=(24, 24, 16))).voxels.max() <= 2
