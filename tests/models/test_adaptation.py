"""Weights for another patch, other channels, other positions: what the whole encoder then says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import WeightsError
from mim3d.models.adaptation import adapted_tensors, changed_channels, check_adaptable
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import TransferReport, transfer_encoder
from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.patches import patchify, unpatchify

SMALL = EncoderConfig(
    width=24, depth=2, heads=2, patch=(4, 4, 2), channels=1, positions="sincos_index"
)
SPACING = (1.0, 0.5, 3.0)


def encoder(seed: int, **fields: object) -> VolumeViT:
    """Random weights whose kernel and biases all count."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = VolumeViT(replace(SMALL, **fields))  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def volume(size: Triple, channels: int = 1) -> Tensor:
    places = torch.arange(channels * size[0] * size[1] * size[2]).reshape(1, channels, *size)
    return torch.sin(0.37 * places) + 0.01 * places / places.numel()


def moved(
    source: VolumeViT, target: VolumeViT, *adapt: str, name: str = "runs/one"
) -> TransferReport:
    return transfer_encoder(
        target, source.state_dict(), source=name, found=source.config, adapt=adapt
    )


@pytest.mark.parametrize("patch", [(8, 8, 2), (4, 8, 8), (4, 5, 3)])
def test_an_encoder_of_larger_patches_knows_resized_patches_again(patch: Triple) -> None:
    source, target = encoder(1), encoder(2, patch=patch)
    size = (12, 8, 6)
    voxels = volume(size)
    grid = TokenGrid.over(size, SMALL.patch)
    boxes = patchify(voxels, SMALL.patch).reshape(grid.n, 1, *SMALL.patch)
    resized = F.interpolate(boxes, size=patch, mode="trilinear").reshape(1, grid.n, -1)
    x, y, z = (count * edge for count, edge in zip(grid.counts, patch, strict=True))
    larger = unpatchify(resized, TokenGrid.over((x, y, z), patch), 1)

    report = moved(source, target, "patch")

    with torch.no_grad():
        expected, found = source(voxels, SPACING).tokens, target(larger, SPACING).tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert [one.key for one in report.adapted] == ["embedding.projection.weight"]


def test_the_report_names_old_and_new_shapes_and_why() -> None:
    report = moved(encoder(1), encoder(2, patch=(2, 2, 2), channels=3), "patch", "channels")

    (adapted,) = report.adapted
    assert (adapted.found, adapted.made) == ((24, 32), (24, 24))
    assert str(adapted) == (
        "`embedding.projection.weight` was 24 x 32, now 24 x 24 "
        "(`encoder.channels` 1 to 3; `encoder.patch` 4,4,2 to 2,2,2)"
    )
    assert set(report.loaded) == set(encoder(2).state_dict())


def test_every_other_tensor_is_the_sources_own() -> None:
    source, target = encoder(1), encoder(2, patch=(2, 8, 2))

    moved(source, target, "patch")

    for key, tensor in target.state_dict().items():
        if key != "embedding.projection.weight":
            assert torch.equal(tensor, source.state_dict()[key])


@pytest.mark.parametrize("stem", ["patches", "convolutional"])
def test_one_channel_becomes_three_equal_ones(stem: str) -> None:
    """Repeated and divided by three: three equal channels say what the one said."""
    patch = (4, 4, 2)
    source = encoder(1, stem=stem, stem_width=4, patch=patch)
    target = encoder(2, stem=stem, stem_width=4, patch=patch, channels=3)
    voxels = volume((11, 13, 7))

    report = moved(source, target, "channels")

    with torch.no_grad():
        expected = source(voxels, SPACING).tokens
        found = target(voxels.expand(-1, 3, -1, -1, -1), SPACING).tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(report.adapted) == 1


@pytest.mark.parametrize("stem", ["patches", "convolutional"])
def test_three_channels_become_one_by_their_sum(stem: str) -> None:
    source = encoder(1, stem=stem, stem_width=4, channels=3)
    target = encoder(2, stem=stem, stem_width=4)
    voxels = volume((11, 13, 7))

    moved(source, target, "channels")

    with torch.no_grad():
        expected = source(voxels.expand(-1, 3, -1, -1, -1), SPACING).tokens
        found = target(voxels, SPACING).tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_channels_are_slowest_in_a_kernel() -> None:
    weight = torch.arange(12.0).reshape(1, 12)  # 3 channels of 4 voxels

    assert changed_channels(weight, 3, 1).tolist() == [[12.0, 15.0, 18.0, 21.0]]
    assert changed_channels(weight[:, :2], 1, 2).tolist() == [[0.0, 0.5, 0.0, 0.5]]


def test_a_learned_table_is_interpolated_to_the_new_grid() -> None:
    """The states are those that the old encoder has on a crop of that grid by itself."""
    fields = {"positions": "learned"}
    source = encoder(1, **fields, learned_grid=(2, 3, 4))
    target = encoder(2, **fields, learned_grid=(3, 2, 5))
    voxels = volume((12, 8, 10))  # a grid of 3 x 2 x 5

    report = moved(source, target, "positions")

    with torch.no_grad():
        expected, found = source(voxels).tokens, target(voxels).tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert [str(one) for one in report.adapted] == [
        "`positions.table` was 1 x 24 x 24, now 1 x 30 x 24 (`encoder.learned_grid` 2,3,4 to 3,2,5)"
    ]


def test_positions_without_a_table_leave_it_out_and_say_so() -> None:
    source = encoder(1, positions="learned", learned_grid=(2, 2, 2))

    report = moved(source, encoder(2, positions="rotary_mm"), "positions")

    assert [str(one) for one in report.adapted] == [
        "`positions.table` was 1 x 8 x 24, left out (`encoder.positions` learned to rotary_mm)"
    ]


@pytest.mark.parametrize("present", [(True, True, True), (False, True, False)])
def test_of_one_channel_each_contrast_gets_a_copy(present: tuple[bool, ...]) -> None:
    source = encoder(1)
    target = encoder(2, channels=3, embedding="per_contrast", contrasts=("t1", "t2", "pd"))
    voxels = volume((11, 13, 7))

    report = moved(source, target, "channels")

    with torch.no_grad():
        expected = source(voxels, SPACING).tokens
        same = voxels.expand(-1, 3, -1, -1, -1)
        found = target(same, SPACING, present=torch.tensor([present])).tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert [(one.key, one.found) for one in report.adapted] == [
        ("embedding.projection.weight", (24, 32)),
        ("embedding.contrast_tokens", None),
    ]


def test_what_is_not_asked_for_is_not_adapted() -> None:
    source, target = encoder(1), encoder(2, patch=(4, 4, 4))
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}

    for adapt in ((), ("channels", "positions")):
        with pytest.raises(WeightsError, match=r"1 of \d+ encoder tensors of `runs/one` do not"):
            moved(source, target, *adapt)

    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_equal_encoders_are_handed_through() -> None:
    source = encoder(1)

    tensors, adapted = adapted_tensors(source.state_dict(), source.config, source.config)

    assert adapted == ()
    assert all(tensor is source.state_dict()[key] or torch.equal(tensor, source.state_dict()[key])
               for key, tensor in tensors.items())  # fmt: skip


@pytest.mark.parametrize(
    ("found", "asked", "words"),
    [
        ({"stem": "convolutional"}, {"stem": "convolutional", "patch": (8, 8, 8)}, "stem patches"),
        ({"channels": 2}, {"channels": 3}, "1 channel can become many"),
        ({"positions": "sincos_mm"}, {"positions": "learned"}, "--encoder.positions sincos_mm"),
        (
            {"channels": 2},
            {"channels": 2, "embedding": "per_contrast", "contrasts": ("a", "b")},
            "only 1 channel",
        ),
        (
            {"embedding": "per_contrast", "contrasts": ("a",)},
            {"embedding": "joint"},
            "by name",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_with_what_to_type(
    found: dict[str, object], asked: dict[str, object], words: str
) -> None:
    with pytest.raises(WeightsError) as refused:
        check_adaptable(
            replace(SMALL, **found),
            replace(SMALL, **asked),
            source="runs/one",  # type: ignore[arg-type]
        )

    assert "runs/one" in str(refused.value) + str(refused.value.remedy)
    assert words in str(refused.value.remedy)


def test_damaged_tensors_are_listed_and_not_adapted() -> None:
    source, target = encoder(1), encoder(2, patch=(2, 2, 2))
    tensors = source.state_dict()
    bad = tensors["embedding.projection.weight"].clone()
    bad[3, 5] = float("nan")
    missing = {key: value for key, value in tensors.items() if "projection.weight" not in key}

    for wrong, words in [
        ({**tensors, "embedding.projection.weight": bad}, "holds NaN"),
        ({**tensors, "embedding.projection.weight": bad[:, :31]}, "24 x 31, expected 24 x 8"),
        (missing, "is missing"),
    ]:
        with pytest.raises(WeightsError) as refused:
            transfer_encoder(target, wrong, found=source.config, adapt=("patch",))
        assert words in str(refused.value.remedy)
