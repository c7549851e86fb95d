"""MONAI's transforms, loss, inferer and metric around a UNETR: python monai_loop.py STORE RUN."""

import sys

import torch
from monai.data import DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot
from monai.transforms import Compose, RandCropByPosNegLabeld, SpatialPadd

from mim3d import UNETR, VolumeViT
from mim3d.data.store import open_store


def main(store_path: str, run: str, epochs: int = 2, crop=(32, 32, 32)) -> float:
    store, keys = open_store(store_path), ("image", "label")
    cut = Compose([SpatialPadd(keys, crop), RandCropByPosNegLabeld(keys, "label", crop)])
    training = store.dataset("training", labelled=True, transform=cut, as_monai=True)
    network = UNETR(VolumeViT.load(run), classes=store.classes.count)
    loss_of, metric = DiceCELoss(to_onehot_y=True, softmax=True), DiceMetric(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in DataLoader(training, batch_size=2, shuffle=True):
            loss = loss_of(network(batch["image"], batch["spacing_mm"]), batch["label"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.eval()
    for case in store.dataset("validation", labelled=True, as_monai=True):
        with torch.no_grad():
            logits = sliding_window_inference(case["image"][None], crop, 2, network, overlap=0.5)
        found = one_hot(logits.argmax(1, keepdim=True), store.classes.count)
        metric(found, one_hot(case["label"][None], store.classes.count))
    return metric.aggregate().item()


if __name__ == "__main__":
    print(main(*sys.argv[1:3]))
