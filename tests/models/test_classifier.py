"""The network of whole volumes: what it pools, and which tokens it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.classifier import VolumeClassifier, pooled_tokens
from mim3d.models.looks import kept_tokens
from mim3d.models.vit import VolumeViT
from mim3d.tokens.patches import cut_crop
from mim3d.training.ema import MeanWeights

SIZE = (11, 13, 7)


def _network(outputs: int = 3, *, class_token: bool = False, **fields) -> VolumeClassifier:
    torch.manual_seed(0)
    config = EncoderConfig(
        width=24, depth=2, heads=2, patch=(4, 4, 2), channels=1, class_token=class_token,
        registers=2, default_spacing_mm=(1.0, 1.0, 2.0),
    )  # fmt: skip
    network = VolumeClassifier(VolumeViT(config), outputs, **fields).eval()
    torch.nn.init.normal_(network.decoder.linear.weight, std=0.5)
    return network


def _voxels(count: int = 2) -> torch.Tensor:
    return torch.randn((count, 1, *SIZE), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_mean_is_over_patch_tokens_that_are_valid():
    network, voxels = _network(class_token=True), _voxels()
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[0, 4:] = False  # of three tokens along x the first stays

    outputs = network(voxels, valid=valid)

    states = network.encoder(voxels, valid=valid)
    rows = [states.tokens[0, :16].mean(dim=0), states.tokens[1].mean(dim=0)]
    linear = network.decoder.linear
    expected = torch.stack([linear.weight @ row + linear.bias for row in rows])
    assert torch.allclose(outputs, expected, atol=1e-5)


@torch.no_grad()
def test_statistics_are_mean_and_deviation_of_the_valid_tokens_standardised_by_constants():
    network, voxels = _network(pool="statistics", standardises=True), _voxels()
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[0, 4:] = False
    head = network.decoder
    torch.nn.init.normal_(head.mean)
    torch.nn.init.uniform_(head.deviation, 0.5, 2.0)

    outputs = network(voxels, valid=valid)

    states = network.encoder(voxels, valid=valid)
    rows = []
    for tokens in (states.tokens[0, :16].numpy(), states.tokens[1].numpy()):
        row = np.concatenate([tokens.mean(axis=0), tokens.std(axis=0)])
        rows.append((row - head.mean.numpy()) / head.deviation.numpy())
    expected = np.stack(rows) @ head.linear.weight.numpy().T + head.linear.bias.numpy()
    np.testing.assert_allclose(outputs.numpy(), expected, atol=1e-4)


@torch.no_grad()
def test_in_training_it_is_standardised_by_the_batch():
    network, voxels = _network(pool="statistics", standardises=True), _voxels(5)
    head = network.decoder.train()
    states = network.encoder(voxels)
    oracle = torch.nn.BatchNorm1d(48, affine=False, eps=1e-6)

    outputs = head(states)

    normed = oracle(pooled_tokens(states.tokens, None, "statistics"))
    torch.testing.assert_close(outputs, head.linear(normed), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_moments_follow_the_batches_as_the_mean_of_the_weights_follows_the_weights():
    """So the mean weights are standardised by about what they would give, first batch included."""
    network = _network(pool="statistics", standardises=True, memory=0.4)
    head, followed = network.decoder.train(), None
    for step in range(8):
        states = network.encoder(_voxels(5) * 1.5**step)
        rows = pooled_tokens(states.tokens, None, "statistics")
        moments = torch.nn.Parameter(torch.stack([rows.mean(0), rows.var(0, correction=0) + 1e-6]))
        if followed is None:
            held = moments
            followed = MeanWeights({"moments": held}, 0.4)
        else:
            held.copy_(moments)
            followed.update()

        head(states)
        head.follow()

        mean, variance = followed.tensors["moments"]
        torch.testing.assert_close(head.mean, mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(head.deviation.square(), variance, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_batch_whose_step_was_skipped_leaves_no_trace():
    network = _network(pool="statistics", standardises=True)
    head = network.decoder.train()
    for voxels in (_voxels(5), _voxels(5) * torch.nan, _voxels(5)):
        head(network.encoder(voxels))
        if voxels.isfinite().all():
            head.follow()
    mean = pooled_tokens(network.encoder(_voxels(5)).tokens, None, "statistics").mean(dim=0)

    torch.testing.assert_close(head.mean, mean)
    head.follow()  # nothing was seen since
    torch.testing.assert_close(head.mean, mean)


@torch.no_grad()
def test_fixed_moments_count_in_training_too():
    network, voxels = _network(pool="statistics", standardises=True, is_fixed=True), _voxels(5)
    torch.nn.init.normal_(network.decoder.mean)
    before, judged = network.decoder.mean.clone(), network(voxels)

    outputs = network.train()(voxels)
    network.decoder.follow()

    torch.testing.assert_close(outputs, judged)
    torch.testing.assert_close(network.decoder.mean, before)


def test_tokens_that_are_all_the_same_have_a_gradient_that_is_finite():
    tokens = torch.ones(2, 5, 3, requires_grad=True)

    pooled_tokens(tokens, None, "statistics").sum().backward()

    assert torch.isfinite(tokens.grad).all()


@torch.no_grad()
def test_the_class_token_is_the_first_of_the_prefix():
    network, voxels = _network(class_token=True, pool="class_token"), _voxels()

    outputs = network(voxels)

    first = network.encoder(voxels).prefix[:, 0]
    linear = network.decoder.linear
    assert torch.allclose(outputs, first @ linear.weight.T + linear.bias, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "statistics", "class_token"])
def test_what_stands_in_padding_changes_no_answer(pool):
    network, voxels = _network(class_token=True, pool=pool), _voxels()
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[:, :, 9:] = False
    dirty = voxels.clone()
    dirty[:, :, :, 9:] = 1e6

    assert torch.equal(network(voxels, valid=valid), network(dirty, valid=valid))


@torch.no_grad()
def test_under_autocast_answers_keep_all_their_digits():
    network, voxels = _network(), _voxels(16)

    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(voxels)

    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, outputs.bfloat16().float())


@pytest.mark.parametrize("keep", [0.05, 0.25, 0.5])
def test_of_every_volume_the_share_of_its_valid_tokens_is_exact(keep):
    voxels = _voxels(3)
    valid = torch.ones((3, *SIZE), dtype=torch.bool)
    valid[1, 4:] = False  # 16 of 48 tokens
    valid[2, 4:] = valid[2, :, 4:] = valid[2, :, :, 2:] = False  # 1 of 48 tokens
    cut = cut_crop(voxels, valid, (4, 4, 2))

    split = kept_tokens(cut, torch.tensor([5, 6, 7]), keep)

    seen = split.visible_valid.sum(dim=1).tolist()
    assert seen == [max(1, int(keep * have + 0.5)) for have in (48, 16, 1)]
    for row in range(3):
        chosen = split.visible[row][split.visible_valid[row]]
        assert cut.crop.token_valid[row, chosen].all()
    assert split.masked.shape[1] == 0


@torch.no_grad()
def test_with_keep_at_test_an_answer_does_not_depend_on_what_passes_beside_it():
    network, voxels = _network(keep=0.25, keep_at_test=True), _voxels(4)
    whole = _network(keep=0.25)

    together, alone = network(voxels), torch.cat([network(one[None]) for one in voxels])

    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, whole(voxels), atol=1e-3)


@torch.no_grad()
def test_a_slice_one_voxel_thick_is_a_volume():
    config = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 1), channels=1,
                           default_spacing_mm=(1.0, 1.0, 1.0))  # fmt: skip
    network = VolumeClassifier(VolumeViT(config), 2, keep=0.5, keep_at_test=True).eval()

    assert network(torch.randn(3, 1, 12, 8, 1)).shape == (3, 2)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"pool": "class_token"}, "needs an encoder with a class token"),
        ({"dropout": 1.0}, "`classification.dropout` is 1.0"),
        ({"keep": 0.0}, "`classification.keep` is 0.0"),
        ({"keep": 1.5}, "`classification.keep` is 1.5"),
        ({"keep_at_test": True}, "`classification.keep_at_test true` is about the tokens that are"),
        ({"keep": 0.5, "keep_polarity": "low"}, "`classification.keep_polarity low` leaves out"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, what):
    with pytest.raises(ConfigError, match=what):
        _network(**fields)


@torch.no_grad()
def test_padding_does_not_pass_the_encoder_where_air_is_dropped() -> None:
    """And what remains is answered as by a network that masks it."""
    network, voxels = _network(drop_air=True), _voxels()
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[0, 4:] = False
    valid[1, :, 8:] = False

    looked = network.look(voxels, valid=valid)

    counts = cut_crop(voxels, valid, (4, 4, 2)).crop.token_valid.sum(dim=1)
    assert looked.states.tokens.shape[1] == counts.max()
    plain = _network()
    plain.load_state_dict(network.state_dict())
    assert torch.allclose(looked.outputs, plain(voxels, valid=valid), atol=1e-5)
