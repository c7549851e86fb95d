"""The Hounsfield window that crops of a CT are normalised by; `windows` counts back by it."""

from __future__ import annotations

from dataclasses import replace

from mim3d.config.data import DataConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError

Window = tuple[float, float]


def with_window(objective: PretextConfig, data: DataConfig, store: Store | None) -> PretextConfig:
    """The pretext task with `targets.prepared_hu` filled in, where its target asks for it.

    Args:
        objective: the pretext task.
        data: whose `window_hu` goes before what the store noted.
        store: of which crops are cut; None assumes the window that `prepare` has by default.

    Raises:
        ConfigError: a channel is no CT, stores with different windows, or another window was said.
    """
    if objective.target != "windows":
        return objective
    found = data.window_hu or PreparationConfig().window_hu
    if store is not None:
        _check_ct(store)
        found = data.window_hu or _noted(store)
    said = objective.targets.prepared_hu
    if said not in (None, found):
        raise ConfigError(
            f"`objective.targets.prepared_hu` is {_shown(said)}, but crops are normalised by "
            f"{_shown(found)} HU",
            remedy="leave it out, or set `data.window_hu` to the window you want",
            code="window",
        )
    return replace(objective, targets=replace(objective.targets, prepared_hu=found))


def _check_ct(store: Store) -> None:
    other = [modality for modality in store.modalities if modality != "ct"]
    if other:
        raise ConfigError(
            f"`objective.target windows` is for CT, and the store holds {other[0]}",
            where=str(store.path),
            remedy="take another `objective.target`, or prepare with `--modality ct` what is CT",
            code="window",
        )


def _noted(store: Store) -> Window:
    """The window that stands beside the voxels; one case of a store speaks for all of it."""
    found = set()
    for cases in store.strata(store.cases).values():
        with store.open(cases[0], False) as case:
            found |= {(rule.low, rule.high) for rule in case.normalisation}
    if len(found) > 1:
        listed = " and ".join(map(_shown, sorted(found)))
        raise ConfigError(
            f"`objective.target windows` needs one window, and the stores have {listed} HU",
            remedy="set `data.window_hu`, which goes before what they noted",
            code="window",
        )
    return found.pop()


def _shown(window: Window | None) -> str:
    return "none" if window is None else f"[{window[0]:g}, {window[1]:g}]"
