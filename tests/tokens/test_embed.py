"""The embedding against a convolution, and gathering."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mim3d.tokens.embed import PatchEmbedding
from mim3d.tokens.gather import gather
from mim3d.tokens.patches import patchify


def test_the_embedding_is_a_convolution_whose_kernel_is_its_stride() -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(2, (4, 2, 3), 10)
    voxels = torch.randn(2, 2, 8, 6, 9)

    tokens = embedding(patchify(voxels, (4, 2, 3)))

    kernel = embedding.projection.weight.reshape(10, 2, 4, 2, 3)
    oracle = F.conv3d(voxels, kernel, embedding.projection.bias, stride=(4, 2, 3))
    torch.testing.assert_close(tokens, oracle.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_only_the_tokens_asked_for_are_embedded() -> None:
    embedding = PatchEmbedding(1, (2, 2, 2), 5)
    patches = torch.randn(2, 9, 8)
    index = torch.tensor([[3, 1], [8, 0]])
    patches[0, 5] = torch.nan

    tokens = embedding(patches, index)

    every = embedding(patches)
    torch.testing.assert_close(tokens[0], every[0, [3, 1]])
    torch.testing.assert_close(tokens[1], every[1, [8, 0]])


def test_gather_takes_each_samples_own_tokens() -> None:
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    index = torch.tensor([[3, 0, 0], [1, 1, 2]])

    picked = gather(tokens, index)

    for i in range(2):
        for j in range(3):
            assert torch.equal(picked[i, j], tokens[i, index[i, j]])


def test_gather_shares_a_batch_of_one() -> None:
    tokens = torch.arange(12.0).reshape(1, 4, 3)

    picked = gather(tokens, torch.tensor([[3], [1]]))

    assert picked[:, 0].tolist() == [[9, 10, 11], [3, 4, 5]]
