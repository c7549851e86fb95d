"""`curve.json` of a run: the Dice of every judged case at every step where it was judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim3d.foundation.documents import read_object
from mim3d.training.run import CURVE, Run


class Curve:
    """`curve.json` of a run: Dice of every judged case at every step where it was judged.

    Args:
        run: whose folder it lies in.
        subjects: whom each judged case belongs to, by case.
    """

    def __init__(self, run: Run, subjects: Mapping[str, str]) -> None:
        self._run = run
        self._subjects = dict(subjects)

    def note(
        self, step: int, dice: Mapping[str, float], zeroed: Mapping[str, float] | None = None
    ) -> None:
        """Adds a step; one that was judged before an interruption is written over.

        Args:
            step: where it was judged.
            dice: of each case.
            zeroed: the same with the encoder's output set to zero; None: not looked at.
        """
        steps = read_curve(self._run.folder).get("dice", {})
        # Later ones belong to work that is done again.
        kept = {key: value for key, value in steps.items() if int(key) < step}
        content = {"subjects": self._subjects, "dice": {**kept, str(step): dict(dice)}}
        audit = {} if zeroed is None else {"zeroed": dict(zeroed)}
        self._run.write_json(CURVE, {**content, **audit})


def read_curve(folder: Path) -> dict[str, Any]:
    """`curve.json`: `subjects` by case, `dice` by step and case, `zeroed` by case once it is done.

    Empty where there is none.
    """
    path = folder / CURVE
    return read_object(path) if path.is_file() else {}
