"""Overlapping regions of brain tumours, and the four schemes by which files number the tissues.

The numbers 1, 2, 3 alone are ambiguous: BraTS 2023 and MSD Task01 both use them, for different
tissues. Hence a scheme is always named. Needs NumPy alone.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from mim3d.data.classes import IGNORE_INDEX, ClassTable
from mim3d.foundation.errors import ConfigError, UserError


@dataclass(frozen=True)
class RegionScheme:
    """Which label values make up which region.

    Args:
        name: how configs call it.
        tissues: label value to tissue; 0, the background, is not in it.
        regions: region to the values it is the union of, in the order of output channels.
        written: region to the value written for it; of several, the innermost wins, and the
            innermost stands last.
        warning: why it should not be used, or None.
    """

    name: str
    tissues: dict[int, str]
    regions: dict[str, tuple[int, ...]]
    written: dict[str, int]
    warning: str | None = None

    @property
    def known_values(self) -> tuple[int, ...]:
        """The values a label map may have, background included."""
        return (0, *sorted(self.tissues))

    @property
    def count(self) -> int:
        """Number of regions, which is the number of output channels."""
        return len(self.regions)

    @property
    def names(self) -> tuple[str, ...]:
        """The regions in the order of channels."""
        return tuple(self.regions)

    def to_regions(self, labels: Any) -> Any:
        """The regions of a label map.

        Args:
            labels: values of any shape, a NumPy array or a tensor.

        Returns:
            bool of shape (k, ...), one channel a region, of the same kind.
        """
        channels = [reduce(lambda a, b: a | b, (labels == v for v in values))
                    for values in self.regions.values()]  # fmt: skip
        return _stack(channels)

    def to_values(self, regions: Any) -> Any:
        """The label map of regions: ET over TC over WT, as the values of this scheme.

        Regions need not nest: a voxel in ET is enhancing tumour even outside of TC and WT.

        Args:
            regions: bool (k, ...), a NumPy array or a tensor.

        Returns:
            Integers (...): uint8 of the same kind.
        """
        first = regions[0]
        values = first.astype(np.uint8) if isinstance(first, np.ndarray) else first.byte()
        values = values * 0
        for name, value in self.written.items():
            values[regions[self.names.index(name)]] = value
        return values

    def indexed(self, classes: ClassTable) -> RegionScheme:
        """The same scheme over class indices instead of values, for label maps from a store.

        Raises:
            UserError: the classes' values do not fit this scheme.
        """
        self.check_values(classes.values)
        place = {value: index for index, value in enumerate(classes.values)}
        # A value that no label map of this cohort has gets an index that none of them has.
        place = {v: place.get(v, IGNORE_INDEX - 1 - v) for v in self.known_values}
        return RegionScheme(
            self.name,
            {place[value]: tissue for value, tissue in self.tissues.items()},
            {name: tuple(place[v] for v in values) for name, values in self.regions.items()},
            {name: place[value] for name, value in self.written.items()},
            self.warning,
        )

    def check_values(self, values: Iterable[int]) -> None:
        """Raises unless every value has a tissue in this scheme.

        Raises:
            UserError: names the schemes that fit.
        """
        found = {int(value) for value in values}
        foreign = sorted(found - set(self.known_values))
        if not foreign:
            return
        fitting = [f"`{s.name}`" for s in SCHEMES.values()
                   if not s.warning and found <= set(s.known_values)]  # fmt: skip
        raise UserError(
            f"label value {foreign[0]} has no tissue in the region scheme `{self.name}`, "
            f"which knows {', '.join(map(str, self.known_values))}",
            remedy=f"{' or '.join(fitting)} fits the values found"
            if fitting
            else "no scheme fits these values; use one class a voxel (`objective.regions null`)",
            code="region-scheme",
        )


def _stack(channels: list[Any]) -> Any:
    if isinstance(channels[0], np.ndarray):
        return np.stack(channels)
    import torch  # only where the caller has tensors already

    return torch.stack(channels)


NECROSIS = "necrosis and non-enhancing tumour"
OEDEMA = "oedema"
ENHANCING = "enhancing tumour"

SCHEMES: dict[str, RegionScheme] = {
    scheme.name: scheme
    for scheme in (
        RegionScheme(
            # BraTS 2018 to 2021; MONAI's ConvertToMultiChannelBasedOnBratsClasses.
            "brats2021",
            {1: NECROSIS, 2: OEDEMA, 4: ENHANCING},
            {"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)},
            {"WT": 2, "TC": 1, "ET": 4},
        ),
        RegionScheme(
            # BraTS 2023 onward (MONAI issue 8779).
            "brats2023",
            {1: NECROSIS, 2: OEDEMA, 3: ENHANCING},
            {"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)},
            {"WT": 2, "TC": 1, "ET": 3},
        ),
        RegionScheme(
            # MSD Task01's dataset.json; nnU-Net's renumbering of BraTS is the same.
            "msd_task01",
            {1: OEDEMA, 2: "non-enhancing tumour", 3: ENHANCING},
            {"TC": (2, 3), "WT": (1, 2, 3), "ET": (3,)},
            {"WT": 1, "TC": 2, "ET": 3},
        ),
        RegionScheme(
            # SelfMedMAE, TokenSparse and MONAI's tutorials on MSD Task01.
            "selfmedmae_legacy",
            {1: OEDEMA, 2: "called enhancing, is non-enhancing tumour", 3: "called necrosis"},
            {"TC": (2, 3), "WT": (1, 2, 3), "ET": (2,)},
            {"WT": 1, "TC": 3, "ET": 2},
            "`selfmedmae_legacy` takes non-enhancing tumour (2) for enhancing; it exists to "
            "reproduce published numbers, report ET by `msd_task01` beside it",
        ),
    )
}


def region_scheme(name: str) -> RegionScheme:
    """The scheme of that name; warns where it is known to be wrong.

    Raises:
        ConfigError: no such scheme, with the nearest name.
    """
    if name not in SCHEMES:
        near = difflib.get_close_matches(name, SCHEMES, n=1)
        raise ConfigError(
            f"`{name}` is not a region scheme",
            remedy=f"did you mean `{near[0]}`?" if near else f"one of {', '.join(SCHEMES)}",
        )
    scheme = SCHEMES[name]
    if scheme.warning:
        warnings.warn(scheme.warning, UserWarning, stacklevel=2)
    return scheme
