"""What each process of the two-process tests runs; started by `torchrun`, not by pytest."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from loop_fakes import FakeFeed, FakeTask, optim_config, training_config  # noqa: E402

from mim3d.data.batch import CropBatch  # noqa: E402
from mim3d.foundation.errors import UserError  # noqa: E402
from mim3d.foundation.reporting import Silent  # noqa: E402
from mim3d.objectives.base import Moment, Outcome, Task  # noqa: E402
from mim3d.training.loop import Validator, fit  # noqa: E402
from mim3d.training.run import Run  # noqa: E402


class TroubledTask(FakeTask):
    """Does what the test asks for, in the second process alone."""

    def __init__(self, trouble: str) -> None:
        super().__init__(dropout=0.0)
        self.trouble = trouble if os.environ.get("RANK") == "1" else "none"

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        if moment.step == 6 and self.trouble == "signal":
            signal.raise_signal(signal.SIGTERM)
        is_first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if moment.step == 6 and self.trouble == "kill" and is_first_try:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch, moment)


def look(task: Task, moment: Moment) -> dict[str, float]:
    return {"loss": float(task(FakeFeed(4, seed=9).batch(0, range(4)), moment).loss)}


def main(folder: Path, trouble: str) -> None:
    rank = os.environ.get("RANK", "0")
    feed = FakeFeed(8)
    if trouble == "nan":
        # Crop 7 belongs to the second process.
        feed.poison = {5: 7}
    facts: dict[str, object]
    try:
        with Run.create_or_continue(folder / "run", {"training": {"device": "cpu"}}) as run:
            result = fit(
                TroubledTask(trouble),
                feed,
                optim_config(freeze_encoder_steps=2),
                training_config(batch_size=8, steps=10),
                run,
                validators=[Validator("look", 4, look, best=("loss", "min"))],
                reporter=Silent(),
            )
        facts = {**result.as_json(), "writes": run.writes}
    except UserError as error:
        facts = {"error": type(error).__name__, "what": error.what}
    (folder / f"rank_{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
