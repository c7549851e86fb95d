"""A UNETR under Lightning's Trainer: python lightning_loop.py STORE RUN."""

import sys

import lightning
import torch
from monai.data import DataLoader
from monai.losses import DiceCELoss
from monai.transforms import Compose, RandSpatialCropd, SpatialPadd

from mim3d import UNETR, VolumeViT
from mim3d.data.store import open_store


class Segmentation(lightning.LightningModule):
    def __init__(self, run: str, classes: int) -> None:
        super().__init__()
        self.network = UNETR(VolumeViT.load(run), classes)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def training_step(self, batch, _):
        logits = self.network(batch["image"], batch["spacing_mm"])
        return self.loss(logits, batch["label"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(store_path: str, run: str, crop=(32, 32, 32), **trainer) -> Segmentation:
    store, keys = open_store(store_path), ("image", "label")
    cut = Compose([SpatialPadd(keys, crop), RandSpatialCropd(keys, crop, random_size=False)])
    cases = store.dataset("training", labelled=True, transform=cut, as_monai=True)
    module = Segmentation(run, store.classes.count)
    loop = lightning.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, **trainer)
    loop.fit(module, DataLoader(cases, batch_size=2, shuffle=True))
    return module


if __name__ == "__main__":
    main(*sys.argv[1:3])
