"""The convolutional stem in both forms, against convolutions written out as loops.

Tried with these breaks, each of which fails here: the dense form where patches are masked;
convolutions over neighbours in the isolated form; padding blanked at voxels only; a last stage on
the token grid, whose outer weights never learn; halving by strided convolutions that look beyond
their patch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from view_crops import ENCODER, batch, moment
from view_crops import made as made_task

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.encoder_input import Crops, Replacement
from mim3d.models.stem import ConvStem, Stage
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_metadata, load_weights, save_weights, transfer_encoder
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.tokens.gather import gather
from mim3d.tokens.masking import is_masked, split_tokens
from mim3d.tokens.patches import cut_crop

PATCH = (4, 8, 2)
SIZE = (11, 13, 7)
"""3 x 2 x 4 patches, the last of each axis not whole."""
N = 24
CONFIG = EncoderConfig(
    width=24, depth=2, heads=2, patch=PATCH, channels=2, default_spacing_mm=(1.0, 2.0, 0.5),
    stem="convolutional", stem_width=4,
)  # fmt: skip


def stem(patch: tuple[int, int, int] = PATCH) -> ConvStem:
    torch.manual_seed(0)
    made = ConvStem(2, patch, 10, 4)
    for part in made.modules():
        if isinstance(part, torch.nn.LayerNorm):  # weights that are not 1, biases that are not 0
            torch.nn.init.normal_(part.weight, 1.0, 0.3)
            torch.nn.init.normal_(part.bias, 0.0, 0.3)
    return made


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    return VolumeViT(replace(CONFIG, **fields)).eval()  # type: ignore[arg-type]


def voxels(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, *SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def written_out(made: ConvStem, crop: Tensor, valid: Tensor, *, isolated: bool) -> Tensor:
    """Tokens `gx gy gz d` of one crop `c x y z` of whole patches, voxel by voxel."""
    features = {p: crop[(slice(None), *p)] for p in _places(crop)}
    there = {p for p in features if valid[p]}
    edge = made.patch
    for part in made.stages:
        assert isinstance(part, Stage)
        edge = tuple(a // b for a, b in zip(edge, part.stride, strict=True))
        features, there = _merged(features, there, part.stride, part.merge)
        inner = features
        for norm, convolution in ((part.norm1, part.conv1), (part.norm2, part.conv2)):
            ready = {p: F.gelu(F.layer_norm(v, v.shape, norm.weight, norm.bias)) for p, v in
                     inner.items()}  # fmt: skip
            inner = _convolved(ready, there, convolution, edge if isolated else None)
        features = {
            p: features[p] + inner[p] if p in there else torch.zeros_like(inner[p])
            for p in features
        }
    tokens, _ = _merged(features, there, made.last, made.projection)
    grid = [max(p[axis] for p in tokens) + 1 for axis in range(3)]
    return torch.stack([tokens[p] for p in sorted(tokens)]).reshape(*grid, -1)


def _places(crop: Tensor) -> list[tuple[int, ...]]:
    return [tuple(p) for p in torch.ones(crop.shape[1:]).nonzero().tolist()]


def _merged(
    features: dict[tuple[int, ...], Tensor],
    there: set[tuple[int, ...]],
    stride: tuple[int, int, int],
    linear: torch.nn.Linear,
) -> tuple[dict[tuple[int, ...], Tensor], set[tuple[int, ...]]]:
    boxes: dict[tuple[int, ...], list[Tensor]] = {}
    for p in sorted(features):  # within a box too, z is fastest
        box = tuple(a // b for a, b in zip(p, stride, strict=True))
        boxes.setdefault(box, []).append(features[p])
    whole = {tuple(a // b for a, b in zip(p, stride, strict=True)) for p in there}
    return {p: linear(torch.cat(values)) for p, values in boxes.items()}, whole


def _convolved(
    features: dict[tuple[int, ...], Tensor],
    there: set[tuple[int, ...]],
    convolution: torch.nn.Conv3d,
    edge: tuple[int, ...] | None,
) -> dict[tuple[int, ...], Tensor]:
    found, weight = {}, convolution.weight
    reach = [side // 2 for side in convolution.kernel_size]
    for p in features:
        total = convolution.bias
        for offset in torch.ones(convolution.kernel_size).nonzero().tolist():
            q = tuple(a + b - r for a, b, r in zip(p, offset, reach, strict=True))
            is_far = edge is not None and any(
                a // e != b // e for a, b, e in zip(p, q, edge, strict=True)
            )
            if q in there and not is_far:
                total = total + weight[(slice(None), slice(None), *offset)] @ features[q]
        found[p] = total
    return found


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("patch", [(4, 8, 2), (4, 4, 1), (8, 4, 4)])
def test_both_forms_are_the_stages_written_out_voxel_by_voxel(
    patch: tuple[int, int, int], isolated: bool
) -> None:
    made = stem(patch)
    crop, patches = cut_crop(voxels(), None, patch)
    assert crop.valid is not None  # no side is whole patches

    tokens = made.isolated(crop, patches) if isolated else made.dense(crop)

    expected = written_out(made, crop.voxels[1], crop.valid[1], isolated=isolated)
    torch.testing.assert_close(tokens[1], expected.flatten(0, 2), atol=2e-5, rtol=1e-4)


def test_the_isolated_form_computes_the_tokens_asked_for_and_no_others() -> None:
    made = stem()
    cut = cut_crop(voxels(), None, PATCH)
    index = torch.tensor([[3, 17, 8], [23, 0, 9]])
    rows: list[int] = []
    first = made.stages[0].merge
    first.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))

    some = made(cut, index, is_masked=True)
    every = made(cut, is_masked=True)

    torch.testing.assert_close(some, gather(every, index), atol=1e-6, rtol=1e-5)
    assert rows == [6, 2 * N]


def test_a_token_of_the_isolated_form_follows_from_the_voxels_of_its_patch_alone() -> None:
    made = stem()
    given = torch.randn(1, 2, 12, 16, 8, requires_grad=True)
    cut = cut_crop(given, None, PATCH)

    for number, place in enumerate(cut.crop.grid.indices().tolist()):
        (gradient,) = torch.autograd.grad(
            made(cut, is_masked=True)[0, number].sum(), given, retain_graph=True
        )
        own = torch.zeros(12, 16, 8, dtype=torch.bool)
        x, y, z = (p * edge for p, edge in zip(place, PATCH, strict=True))
        own[x : x + 4, y : y + 8, z : z + 2] = True
        assert bool((gradient[0] != 0).any(dim=0).eq(own).all())
    (dense,) = torch.autograd.grad(made(cut, is_masked=False)[0, 9].sum(), given)
    assert int((dense[0, 0] != 0).sum()) > 3 * 4 * 8 * 2


def test_the_dense_form_of_a_crop_valid_in_one_patch_is_the_isolated_one_of_that_patch() -> None:
    made = stem()
    given = torch.randn(1, 2, 12, 16, 8)
    cut = cut_crop(given, None, PATCH)
    alone = made(cut, is_masked=True)[0]
    blank = made(cut_crop(torch.zeros_like(given), None, PATCH), is_masked=False)[0]

    for number, (x, y, z) in enumerate(cut.crop.grid.indices().tolist()):
        valid = torch.zeros(1, 12, 16, 8, dtype=torch.bool)
        valid[:, 4 * x : 4 * x + 4, 8 * y : 8 * y + 8, 2 * z : 2 * z + 2] = True
        dense = made(cut_crop(given, valid, PATCH), is_masked=False)[0]
        torch.testing.assert_close(dense[number], alone[number], atol=1e-5, rtol=1e-4)
        # Neighbours that hold zeros are not the same as none: they have biases.
        zeros = made(cut_crop(given * valid, None, PATCH), is_masked=False)[0]
        assert not torch.allclose(zeros[number], alone[number], atol=1e-3)
        assert not torch.allclose(zeros[number], blank[number], atol=1e-3)


def test_both_forms_agree_wherever_patches_have_no_valid_neighbour() -> None:
    made = stem((4, 4, 4))
    given = torch.randn(1, 2, 12, 12, 20)
    valid = torch.zeros(1, 3, 3, 5, dtype=torch.bool)
    valid[:, ::2, ::2, ::2] = True
    voxels_valid = valid.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    cut = cut_crop(given, voxels_valid, (4, 4, 4))

    dense, isolated = (made(cut, is_masked=masked)[0, valid.flatten()] for masked in (False, True))

    assert len(dense) == 2 * 2 * 3
    torch.testing.assert_close(dense, isolated, atol=1e-5, rtol=1e-4)


def test_the_encoder_isolates_patches_while_something_is_masked_and_only_then() -> None:
    network = encoder()
    split = split_tokens(torch.rand(2, N), 0)
    nothing = Replacement(torch.zeros(2, N, dtype=torch.bool), torch.zeros(24))

    whole = network(voxels()).tokens
    visible = network(voxels(), split=split).tokens
    replaced = network(voxels(), replaced=nothing).tokens

    torch.testing.assert_close(visible, replaced, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole, visible, atol=1e-2)


@pytest.mark.parametrize("how", ["split", "replaced"])
def test_masked_voxels_change_no_bit_of_what_is_seen_and_get_no_gradient(how: str) -> None:
    network = encoder(depth=1)
    split = split_tokens(torch.rand(2, N), 14)
    masked = is_masked(split, N)
    where: dict[str, object] = {"split": split}
    if how == "replaced":
        where = {"replaced": Replacement(masked, torch.randn(24))}
    given = voxels().requires_grad_()
    hidden = torch.zeros(2, 12, 16, 8, dtype=torch.bool)
    grid = cut_crop(given.detach(), None, PATCH).crop.grid
    for sample, number in masked.nonzero().tolist():
        x, y, z = grid.indices()[number].tolist()
        hidden[sample, 4 * x : 4 * x + 4, 8 * y : 8 * y + 8, 2 * z : 2 * z + 2] = True
    hidden = hidden[:, None, : SIZE[0], : SIZE[1], : SIZE[2]]

    before = network(given, **where).tokens
    before.square().sum().backward()
    after = network(torch.where(hidden, 1e5, given.detach()), **where).tokens

    assert torch.equal(after, before)
    assert given.grad is not None
    assert not given.grad[hidden.expand_as(given.grad)].any()
    assert given.grad[~hidden.expand_as(given.grad)].ne(0).float().mean() > 0.99


def test_the_dense_form_would_leak_which_is_why_it_is_not_taken() -> None:
    """What the two tests above would miss if nothing here could leak at all."""
    made = stem()
    given = torch.randn(1, 2, 12, 16, 8)
    changed = given.clone()
    changed[:, :, 4:8, :8, 2:4] = 7.0

    before, after = (made(cut_crop(v, None, PATCH), is_masked=False) for v in (given, changed))

    assert (before != after).any(dim=-1).sum() > 1


@pytest.mark.parametrize("masked", [False, True])
def test_what_stands_in_padding_changes_no_bit(masked: bool) -> None:
    network = encoder()
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, :, 9:], valid[1, :3], valid[1, ..., 5:] = False, False, False
    split = split_tokens(torch.rand(2, N), 10) if masked else None
    zero = torch.where(valid[:, None], voxels(), 0.0)
    junk = torch.where(valid[:, None], voxels(), torch.nan)

    tokens = [network(v, valid=valid, split=split).tokens for v in (zero, junk)]

    assert torch.equal(*tokens)


def test_the_dense_form_of_a_volume_does_not_mind_padding_around_it() -> None:
    made = stem()
    small = voxels(1)[..., :10, :11, :7]
    larger, valid = torch.full((1, 2, 20, 40, 12), 50.0), torch.zeros(1, 20, 40, 12).bool()
    larger[..., 4:14, 16:27, 2:9], valid[..., 4:14, 16:27, 2:9] = small, True

    alone = made(cut_crop(small, None, PATCH), is_masked=False)
    padded = made(cut_crop(larger, valid, PATCH), is_masked=False)

    inside = padded.reshape(5, 5, 6, -1)[1:4, 2:4, 1:5].flatten(0, 2)
    torch.testing.assert_close(inside, alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [(16, 16, 4), (8, 8, 8), (4, 16, 1), (4, 4, 4)])
def test_every_weight_of_every_kernel_learns_in_the_isolated_form(
    patch: tuple[int, int, int],
) -> None:
    made = stem(patch)
    cut = cut_crop(torch.randn(4, 2, 17, 18, 9), None, patch)

    made(cut, is_masked=True).square().sum().backward()

    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.ne(0).all()), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 16, 4), (4, 8, 1)])
def test_gradients_in_bf16_stay_near_those_in_fp32(
    patch: tuple[int, int, int], masked: bool
) -> None:
    """With `nn.Conv3d` in place of `Conv3` the CPU's are wrong by orders on boxes of 2 cubed."""
    made = stem(patch)
    cut = cut_crop(torch.randn(3, 2, 33, 29, 17), None, patch)
    gradients = []
    for in_bf16 in (False, True):
        made.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            tokens = made(cut, is_masked=masked)
        tokens.float().square().mean().backward()
        # Those of biases nearly cancel, so that their rounding says nothing.
        gradients.append([p.grad.clone() for p in made.parameters() if p.ndim > 1])

    for exact, near in zip(*gradients, strict=True):
        assert float((near - exact).norm() / exact.norm()) < 0.1  # bf16 has three digits


def test_pre_trained_weights_go_whole_through_a_file_into_the_dense_form(tmp_path: Path) -> None:
    source = encoder()
    torch.manual_seed(1)
    target = VolumeViT(CONFIG)
    save_weights(tmp_path / "w.safetensors", source.state_dict(), encoder_metadata(source.config))

    weights = load_weights(tmp_path / "w.safetensors")
    report = transfer_encoder(target, weights.tensors)

    assert any(key.startswith("embedding.stages.0.conv1") for key in report.loaded)
    assert torch.equal(target.eval()(voxels()).tokens, source(voxels()).tokens)


@pytest.mark.parametrize("name", list(PRETEXT_TASKS))
def test_every_pretext_task_trains_the_stem(name: str) -> None:
    task = made_task(name, replace(ENCODER, stem="convolutional", stem_width=4))

    task(batch(name), moment()).loss.backward()

    still = {n for n, p in task.encoder.embedding.named_parameters() if p.grad is None}
    assert bool(still) == (name == "mocov3")  # whose embedding stays as it was drawn
    assert still in (set(), set(dict(task.encoder.embedding.named_parameters())))


def test_a_crop_has_as_many_numbers_behind_a_token_whatever_the_stem() -> None:
    plain = VolumeViT(replace(CONFIG, stem="patches"))

    assert encoder().voxels_per_patch == plain.voxels_per_patch == 2 * 4 * 8 * 2
    assert plain.embedding.projection.in_features == plain.voxels_per_patch


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"patch": (2, 2, 1)}, "nothing to convolve"),
        ({"patch": (12, 8, 8)}, "power of two"),
        ({"stem_width": 0}, "stem_width"),
        ({"stem_width": 10**9}, "stem_width"),
        ({"stem": "hybrid"}, "not one of"),
    ],
)
def test_stems_that_cannot_be_are_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        encoder(**fields)


def test_packed_groups_take_each_their_own_form() -> None:
    network = encoder()
    split = split_tokens(torch.rand(2, N), 10)
    other = torch.randn(1, 2, 20, 9, 6)

    masked, whole = network.forward_packed([Crops(voxels(), split=split), Crops(other)])

    torch.testing.assert_close(masked.tokens, network(voxels(), split=split).tokens)
    torch.testing.assert_close(whole.tokens, network(other).tokens, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_both_forms_compile() -> None:
    network = encoder()
    split = split_tokens(torch.rand(2, N), 10)
    compiled = torch.compile(network, backend="eager", fullgraph=True)

    for where in ({}, {"split": split}):
        torch.testing.assert_close(
            compiled(voxels(), **where).tokens, network(voxels(), **where).tokens
        )


@torch.no_grad()
def test_convolutions_of_a_fresh_stem_tell_a_bright_voxel_from_a_dim_one() -> None:
    """A norm over channels takes the level away; biases in front of it bring it back."""
    torch.manual_seed(0)
    stem = VolumeViT(CONFIG).embedding
    for stage in stem.stages:
        dim, bright = (torch.full((1, stage.merge.in_features), level) for level in (0.5, 2.0))

        def apart(stage: Stage = stage, dim: Tensor = dim, bright: Tensor = bright) -> float:
            shown, other = (stage.norm1(stage.merge(one)) for one in (dim, bright))
            return float((shown - other).norm() / shown.norm())

        assert apart() > 0.1
        torch.nn.init.zeros_(stage.merge.bias)
        assert apart() < 0.01
