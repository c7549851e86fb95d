"""What each process of the test of weight maps runs; started by `torchrun`, not by pytest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from positions import make_case  # noqa: E402
from test_weight_maps import moment, random_batch  # noqa: E402

from mim3d.foundation.randomness import generator  # noqa: E402
from mim3d.objectives.weight_maps import VolumeGrid, WeightMaps  # noqa: E402


def main(folder: Path) -> None:
    """Four crops a step, of which the processes note equal shares; ten tokens at most of each."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    cases = [make_case((19, 18, 17), case_id=name) for name in "abba"]
    grids = {case.case_id: VolumeGrid(case.shape[1:], case.affine) for case in cases[:2]}
    maps = WeightMaps(grids, (4, 3, 2), refresh_epochs=3)
    for step in range(4):
        for index in range(4):
            rng = generator(step, index)
            batch, tokens = random_batch(rng, [cases[index]], (4, 3, 2), (3, 2, 2))
            values = torch.from_numpy(rng.normal(size=(1, tokens.n)))
            if index // (4 // world) == rank:
                # Crops tell of more tokens from one to the next, so do the processes.
                some = torch.arange(3 + 2 * index)[None]
                maps.note(batch, tokens, values[:, : some.shape[1]], moment(step), index=some)
        maps.update()
    folder.mkdir(exist_ok=True)
    save_file(dict(maps.state_dict()), folder / f"rank_{rank}.safetensors")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
