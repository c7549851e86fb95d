"""Volumes of spacings that training never saw: what is predicted, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.volume import Volume
from mim3d.foundation.errors import ConfigError, VolumeError
from mim3d.inference.predict import predict_probabilities
from mim3d.inference.segmenter import Segmenter
from mim3d.models.any_spacing import AtPatch
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from tests.reliability.workbench import attempt, make_segmenter

SEEN = ((0.8, 1.0, 2.0), (1.2, 1.0, 4.0))


def segmenter(**fields: object) -> Segmenter:
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=4, heads=2, patch=(8, 8, 4), positions="rotary_mm")
    encoder = VolumeViT(replace(config, **fields))  # type: ignore[arg-type]
    network = UNETR(encoder, 3, DecoderConfig(name="light", feature_size=4))
    return Segmenter(network, (16, 24, 12), spacings_mm=SEEN)


def volume(spacing_mm: tuple[float, float, float]) -> Volume:
    voxels = np.random.default_rng(0).normal(size=(1, 13, 21, 11)).astype(np.float32)
    return Volume.from_array(voxels, np.diag([*spacing_mm, 1.0]))


@pytest.mark.parametrize(
    ("spacing_mm", "patch"),
    [
        ((0.8, 1.0, 4.0), None),
        ((1.0, 1.0, 3.0), None),
        ((0.77, 1.04, 4.3), None),  # outside, and still nearest to the patch of training
        ((2.4, 1.0, 3.0), (4, 8, 4)),  # 9.6 mm at most
        ((0.4, 1.0, 3.0), (16, 8, 4)),  # 6.4 mm at least
        ((1.0, 3.0, 8.0), (8, 3, 2)),
    ],
)
def test_a_patch_keeps_the_nearest_millimetres_that_training_saw(spacing_mm, patch):
    assert segmenter().patch_at(spacing_mm) == patch


@pytest.mark.parametrize("spacing_mm", [(1.0, 90.0, 3.0), (0.1, 1.0, 3.0), (1.0, 1.0, 27.0)])
def test_a_spacing_that_no_whole_voxels_come_near_is_refused(spacing_mm):
    with pytest.raises(VolumeError, match=r"voxels of .* mm are too far from those of training"):
        predict_probabilities(segmenter(), volume(spacing_mm))


def test_nothing_is_known_of_a_module_without_a_run():
    assert replace(segmenter(), spacings_mm=None).patch_at((9.0, 9.0, 9.0)) is None
    assert replace(segmenter(), network=torch.nn.Identity()).patch_at((9.0, 9.0, 9.0)) is None


def test_within_the_spacings_of_training_the_word_changes_no_bit():
    there = volume((1.0, 1.0, 3.0))
    fixed, by, auto = (
        predict_probabilities(segmenter(), there, InferenceConfig(patch=word)).voxels
        for word in ("fixed", "by_spacing", "auto")
    )

    assert np.array_equal(fixed, by)
    assert np.array_equal(fixed, auto)


def test_outside_of_them_patch_and_window_keep_their_millimetres():
    there, ours = volume((2.4, 1.0, 3.0)), segmenter()
    followed = replace(ours, network=AtPatch(ours.network, (4, 8, 4)), window=(8, 24, 12))
    words = ("auto", "by_spacing", "fixed")

    found = {
        word: predict_probabilities(ours, there, InferenceConfig(patch=word)).voxels
        for word in words
    }
    expected = predict_probabilities(followed, there, InferenceConfig(patch="fixed")).voxels

    assert np.array_equal(found["auto"], expected)
    assert np.array_equal(found["by_spacing"], expected)
    assert np.abs(found["fixed"] - expected).max() > 1e-3


def test_a_stem_that_cannot_follow_stays_as_it_is_or_says_so():
    there, ours = volume((2.4, 1.0, 3.0)), segmenter(stem="convolutional", stem_width=4)

    fixed, auto = (
        predict_probabilities(ours, there, InferenceConfig(patch=word)).voxels
        for word in ("fixed", "auto")
    )

    assert np.array_equal(fixed, auto)
    with pytest.raises(ConfigError, match="only knows the patch it was made for"):
        predict_probabilities(ours, there, InferenceConfig(patch="by_spacing"))


def test_predict_says_what_becomes_of_a_spacing_that_training_never_saw(tmp_path: Path) -> None:
    source, run = make_segmenter(tmp_path / "made")
    image = sorted((source / "imagesTr").glob("*.nii.gz"))[0]
    stored = nib.load(image)
    affine = stored.affine @ np.diag([1, 1, 3, 1])
    coarse = tmp_path / "coarse.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), affine), coarse)

    def said(path: Path, *words: str) -> str:
        out = tmp_path / f"out-{path.name}-{len(words)}"
        code, text = attempt(["predict", str(run), str(path), "--out", str(out), *words])
        assert code == 0, text
        return text

    assert "training had" not in said(image)
    text = said(coarse)
    assert "`coarse` has voxels of" in text
    assert "mm: patches of" in text
    assert "expect a poor result" in said(coarse, "--inference.patch", "fixed")
