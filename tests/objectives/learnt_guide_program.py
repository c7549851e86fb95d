"""What each process of the test of learnt guides runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loop_fakes import optim_config, training_config
from placed_crops import ENCODER, batch
from safetensors.torch import save_file

from mim3d.config.objective import GuideConfig, SupervisedConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.reporting import Silent
from mim3d.objectives.masked import Masked
from mim3d.training.loop import fit
from mim3d.training.run import Run


class CaseFeed:
    """Four crops a step, of four cases, of which three are labelled."""

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        size = 4 // (world * accumulation)
        for step in range(start, stop):
            whole = batch((step, 4, 2), 4, seed=step)
            targets = torch.tensor([[0.0], [1.0], [torch.nan], [1.0]])
            parts = []
            for place in range(accumulation):
                rows = slice((rank * accumulation + place) * size, None)
                rows = slice(rows.start, rows.start + size)
                parts.append(
                    replace(
                        whole,
                        voxels=whole.voxels[rows],
                        affine=whole.affine[rows],
                        case_ids=whole.case_ids[rows],
                        crop_ids=whole.crop_ids[rows],
                        targets=targets[rows],
                    )
                )
            yield step, parts


def main(task: Callable[..., Masked], folder: Path, by: Any) -> None:
    made = task(
        encoder=replace(ENCODER, qkv_bias=False, class_token=True),
        guide=GuideConfig(by=by, warmup=0.25, refresh_epochs=1.0),
        mask_ratio=0.45,
        drop_ratio=0.3,
        supervised=SupervisedConfig("grade", (0.0, 1.0), 0.1),
    )
    folder.mkdir(exist_ok=True)
    with Run.create_or_continue(folder / "run", {"training": {"device": "cpu"}}) as run:
        fit(
            made,
            CaseFeed(),
            optim_config(lr=1e-4, freeze_encoder_steps=0),
            training_config(batch_size=4, steps=4, accumulation=1),
            run,
            reporter=Silent(),
        )
    state = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
    save_file(state, folder / f"rank_{os.environ.get('RANK', '0')}.safetensors")
