"""Networks with the key names and shapes of other programs, written anew: what parity is held to.

Of MONAI its own modules are taken. The others are built from their papers' equations under the
names that their checkpoints have (MIM-Med3D aea6243, SelfMedMAE 21f38b1, facebookresearch/mae
efb2a80): none of their code is here. Each gives `hidden(images)`: the normalised last states and
the residual stream after each block, both without the class token.
"""

from __future__ import annotations

import monai.networks.nets as nets
import torch
from torch import Tensor, nn

Hidden = tuple[Tensor, list[Tensor]]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter drawn anew, biases and norms too, ready to be compared."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = "norm" in name and name.endswith("weight")
            fan = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(1 + 0.2 * noise if is_gain else noise / fan**0.5)
    return network.eval()


class TimmAttention(nn.Module):
    """timm's names: `qkv`, `proj`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class TimmMlp(nn.Module):
    """timm's names: `fc1`, `fc2`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class TimmBlock(nn.Module):
    """timm's names: `norm1`, `attn`, `norm2`, `mlp`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = TimmAttention(width, heads), TimmMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """timm's name of the kernel: `proj`, a convolution over two or three axes."""

    def __init__(self, channels: int, width: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        convolution = nn.Conv3d if len(patch) == 3 else nn.Conv2d
        self.proj = convolution(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimmEncoder(nn.Module):
    """A ViT with a class token; `rows` of `pos_embed`, or none where it is handed in."""

    def __init__(
        self, channels: int, width: int, depth: int, heads: int, patch: tuple[int, ...], rows: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if rows:
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        self.blocks = nn.ModuleList(TimmBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def hidden(self, images: Tensor, table: Tensor | None = None) -> Hidden:
        table = self.pos_embed if table is None else table
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1)
        x, states = x + table, []
        for block in self.blocks:
            x = block(x)
            states.append(x[:, 1:])
        return self.norm(x)[:, 1:], states


class FacebookMae(TimmEncoder):
    """Keys of `models_mae.py` for images of `side` squared."""

    def __init__(
        self, side: int, channels: int, width: int, depth: int, heads: int, patch: int
    ) -> None:
        n = (side // patch) ** 2
        super().__init__(channels, width, depth, heads, (patch, patch), n + 1)
        self.decoder_embed = nn.Linear(width, 24)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, n + 1, 24))
        self.decoder_blocks = nn.ModuleList([TimmBlock(24, 2)])
        self.decoder_norm = nn.LayerNorm(24)
        self.decoder_pred = nn.Linear(24, channels * patch**2)


class SelfMedDecoder(nn.Module):
    """Keys of its pretext decoder."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TimmBlock(width, 2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)


class SelfMedMae(nn.Module):
    """Keys of `lib/models/mae3d.py`: a position table beside the encoder, without class."""

    def __init__(
        self, grid: tuple[int, int, int], channels: int, width: int, depth: int, heads: int,
        patch: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        n = grid[0] * grid[1] * grid[2]
        self.encoder_pos_embed = nn.Parameter(torch.zeros(1, n, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, n, 24))
        self.encoder = TimmEncoder(channels, width, depth, heads, patch, 0)
        self.decoder = SelfMedDecoder(24, channels * patch[0] * patch[1] * patch[2])
        self.encoder_to_decoder = nn.Linear(width, 24)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 24))

    def hidden(self, images: Tensor) -> Hidden:
        # The class token's position is zero.
        return self.encoder.hidden(images, nn.functional.pad(self.encoder_pos_embed, (0, 0, 1, 0)))


class SelfMedUnetr(nn.Module):
    """Keys of `lib/models/unetr3d.py`: its own encoder and the convolutions of MONAI's UNETR."""

    def __init__(
        self, size: tuple[int, int, int], channels: int, classes: int, width: int, heads: int,
        features: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid = tuple(side // 16 for side in size)
        n = self.grid[0] * self.grid[1] * self.grid[2]
        self.encoder = TimmEncoder(channels, width, 12, heads, (16, 16, 16), n + 1)
        self.decoder = nets.UNETR(
            channels, classes, size, features, width, 4 * width, num_heads=heads
        )
        del self.decoder.vit

    def hidden(self, images: Tensor) -> Hidden:
        return self.encoder.hidden(images)

    def forward(self, images: Tensor) -> Tensor:
        last, states = self.hidden(images)
        maps = [
            one.transpose(1, 2).reshape(len(one), -1, *self.grid)
            for one in (states[3], states[6], states[9], last)
        ]
        net = self.decoder
        x = net.decoder5(maps[3], net.encoder4(maps[2]))
        x = net.decoder4(x, net.encoder3(maps[1]))
        x = net.decoder3(x, net.encoder2(maps[0]))
        return net.out(net.decoder2(x, net.encoder1(images)))


class MimMae(nn.Module):
    """Keys of MIM-Med3D's `mae.py`: MONAI's ViT, whose embedding stands there under two names."""

    def __init__(
        self, size: tuple[int, int, int], channels: int, width: int, depth: int, heads: int,
        patch: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = nets.ViT(
            channels, size, patch, width, 4 * width, depth, heads, proj_type="perceptron"
        )
        self.to_patch, self.patch_to_emb = self.encoder.patch_embedding.patch_embeddings
        self.enc_to_dec = nn.Linear(width, 24)
        self.decoder_blocks = nn.ModuleList([nets.ViT(1, 8, 8, 24, 48, 1, 2).blocks[0]])
        self.decoder_norm = nn.LayerNorm(24)
        self.mask_token = nn.Parameter(torch.zeros(24))
        self.decoder_pos_emb = nn.Embedding(self.encoder.patch_embedding.n_patches, 24)
        self.to_pixels = nn.Linear(24, channels * patch[0] * patch[1] * patch[2])

    def hidden(self, images: Tensor) -> Hidden:
        return self.encoder(images)


class MonaiHidden(nn.Module):
    """A MONAI network's keys, and the states of its ViT, all tokens visible and in order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def hidden(self, images: Tensor) -> Hidden:
        vit = getattr(self.network, "vit", self.network)
        x = vit.patch_embedding(images)
        prefix = int(hasattr(vit, "cls_token"))
        if prefix:
            x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1)
        *blocks, norm = [*vit.blocks] if isinstance(vit.blocks, nn.Sequential) else [
            *vit.blocks, vit.norm]  # fmt: skip
        states = []
        for block in blocks:
            x = block(x)
            states.append(x[:, prefix:])
        return norm(x)[:, prefix:], states
