"""MAE's loss and gradients are those of MONAI's MAE."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from masked_tasks import ENCODER, batch, moment, task
from monai.networks.nets import MaskedAutoEncoderViT
from torch import Tensor

from mim3d.models.vit import VolumeViT
from mim3d.objectives.masks import Masking
from mim3d.tokens.masking import is_masked, split_tokens
from mim3d.tokens.patches import patchify


def monais(encoder: VolumeViT, size: tuple[int, int, int]) -> MaskedAutoEncoderViT:
    """MONAI's MAE of the same shape, its decoder 12 wide with one block."""
    return MaskedAutoEncoderViT(
        2, size, encoder.patch, hidden_size=24, mlp_dim=96, num_layers=2, num_heads=2,
        decoder_hidden_size=12, decoder_mlp_dim=48, decoder_num_layers=1, decoder_num_heads=2,
        pos_embed_type="learnable", decoder_pos_embed_type="learnable",
    )  # fmt: skip


def copied(theirs: MaskedAutoEncoderViT) -> dict[str, Tensor]:
    """MONAI's weights under our names."""
    names = {
        "patch_embedding.patch_embeddings": "encoder.embedding.projection",
        "patch_embedding.position_embeddings": "encoder.positions.table",
        "cls_token": "encoder.class_token",
        "decoder_embed": "decoder.embed",
        "mask_tokens": "decoder.mask_token",
        "decoder_pos_embedding": "decoder.positions.table",
        "decoder_pred": "decoder.head",
        "decoder_blocks.1": "decoder.norm",
        "decoder_blocks": "decoder.blocks",
        "blocks.2": "encoder.norm",
        "blocks": "encoder.blocks",
    }
    state = {}
    for key, value in theirs.state_dict().items():
        if "norm_cross_attn" in key:
            continue
        old = next(old for old in names if key.startswith(old))
        key = names[old] + key.removeprefix(old)
        for before, after in [
            ("mlp.linear1", "mlp.widen"), ("mlp.linear2", "mlp.narrow"),
            ("attn.out_proj", "attention.out"), ("attn.", "attention."),
        ]:  # fmt: skip
            key = key.replace(before, after)
        state[key] = value
    state["encoder.embedding.projection.weight"] = theirs.patch_embedding.patch_embeddings.weight
    for key in ("encoder.embedding.projection.weight", "encoder.class_token"):
        state[key] = state[key].flatten(1) if "weight" in key else state[key][0]
    state["decoder.mask_token"] = state["decoder.mask_token"].flatten()
    return state


def test_loss_and_gradients_equal_monais_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (12, 16, 8)
    config = replace(
        ENCODER, positions="learned", learned_grid=(3, 4, 4), class_token=True, qkv_bias=False
    )
    ours = task("mae", config)
    theirs = monais(ours.encoder, size)
    ours.load_state_dict(copied(theirs), strict=True)
    crops = batch(size)
    split = split_tokens(torch.rand(2, 48, generator=torch.Generator().manual_seed(3)), 36)
    monkeypatch.setattr(Masking, "split", lambda *_: split)
    mask = is_masked(split, 48)
    seen = split.visible[:, torch.randperm(12, generator=torch.Generator().manual_seed(4))]

    def choose(x: Tensor, masking_ratio: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return x.gather(1, seen[..., None].expand(-1, -1, 24)), seen, mask.int()

    monkeypatch.setattr(theirs, "_masking", choose)
    predicted, _ = theirs(crops.voxels)
    error = (predicted - patchify(crops.voxels, ours.encoder.patch)).square().mean(-1)
    expected = (error * mask).sum() / mask.sum()
    outcome = ours(crops, moment())
    outcome.loss.backward()
    expected.backward()

    torch.testing.assert_close(outcome.loss, expected, rtol=1e-5, atol=0)
    for mine, other in [
        (ours.encoder.blocks[0].attention.qkv, theirs.blocks[0].attn.qkv),
        (ours.encoder.embedding.projection, theirs.patch_embedding.patch_embeddings),
        (ours.decoder.blocks[0].mlp.widen, theirs.decoder_blocks[0].mlp.linear1),
    ]:
        one, two = mine.weight.grad, other.weight.grad.flatten(1)
        assert (one - two).norm() < 1e-4 * two.norm()
