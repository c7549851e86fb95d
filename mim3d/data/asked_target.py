"""One number of each case that a network answers, and how its outputs stand for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.batch import Target

FEWEST_CLASSES = 2


@dataclass(frozen=True)
class AskedTarget:
    """One number of each case, and how a network's outputs stand for it.

    Args:
        name: what the store calls it.
        classes: the values it takes, rising; None where it is a number to regress.
        mean: of a number over the training cases, which is 0 to the network.
        deviation: of a number over the training cases, which is 1 to the network.
        counts: training cases of each class; empty for a number.
        is_sigmoid: whether one output tells class 1 from 0, in place of one for each class.
    """

    name: str
    classes: tuple[float, ...] | None = None
    mean: float = 0.0
    deviation: float = 1.0
    counts: tuple[int, ...] = ()
    is_sigmoid: bool = False

    @property
    def outputs(self) -> int:
        """Of the network, for this target."""
        return 1 if self.classes is None or self.is_sigmoid else len(self.classes)

    @property
    def target(self) -> Target:
        """What a feed is asked for."""
        return Target(self.name, self.classes)

    def places(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which classes values are, `n`; ValueError where one is none."""
        assert self.classes is not None
        return np.array([self.classes.index(value) for value in values], np.int64)

    def as_json(self) -> dict[str, Any]:
        """What a run keeps of it."""
        return {**vars(self), "classes": None if self.classes is None else list(self.classes),
                "counts": list(self.counts)}  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> AskedTarget:
        """What a run kept.

        Raises:
            ValueError: it describes no target; also `TypeError` and `KeyError`.
        """
        classes = stored["classes"]
        values = None if classes is None else tuple(map(float, classes))
        one = cls(
            str(stored["name"]),
            values,
            float(stored["mean"]),
            float(stored["deviation"]),
            tuple(map(int, stored["counts"])),
            stored["is_sigmoid"] is True,
        )
        if values is not None and (len(values) < FEWEST_CLASSES or len(set(values)) < len(values)):
            raise ValueError("classes of a target are two or more")
        if not (isfinite(one.mean) and isfinite(one.deviation) and one.deviation > 0):
            raise ValueError("a target has a mean and a deviation above 0")
        return one
