"""Fine-tune a pre-trained encoder in a plain PyTorch loop: python plain_loop.py STORE RUN OUT."""

import sys

import torch
from torch.utils.data import DataLoader

from mim3d import UNETR, VolumeViT
from mim3d.data.store import open_store


def main(store_path: str, run: str, out: str, steps: int = 20, crop: int = 32) -> float:
    store = open_store(store_path)
    cases = store.dataset("training", labelled=True)  # a map-style torch Dataset
    loader = DataLoader(cases, batch_size=None, shuffle=True)

    network = UNETR(VolumeViT.load(run), classes=store.classes.count)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    step = 0
    while step < steps:
        for case in loader:
            image, label = case["image"][None], case["label"].long()
            low = [torch.randint(max(1, side - crop + 1), ()).item() for side in image.shape[2:]]
            x, y, z = (slice(start, start + crop) for start in low)
            logits = network(image[..., x, y, z], spacing_mm=case["spacing_mm"])
            loss = torch.nn.functional.cross_entropy(logits, label[:, x, y, z])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step == steps:
                break
    torch.save(network.state_dict(), out)
    return loss.item()


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
