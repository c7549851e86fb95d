"""What an arm's runs follow from: kept in the plan, and compared with what is asked for later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mim3d.config.data import DataConfig
from mim3d.config.nodes import load
from mim3d.config.reading import from_mapping
from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.data.store import open_store
from mim3d.data.store.layout import digest
from mim3d.foundation.errors import ConfigError
from mim3d.training.run import differing_keys
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.plan import PLAN

SIGN_LETTERS = 16
"""Of a hash of what a store holds."""
NORMED = ("simclr", "mocov3", "byol", "vicreg")
"""Pretext tasks that `objective.contrast.projector_norm` is for."""


def settings_of(arm: Arm, settings: ConvergenceConfig) -> dict[str, Any]:
    """All that an arm's runs follow from, beside label fractions, replicates and folds."""
    said: dict[str, Any] = {
        "finetune": to_mapping(arm.finetune),
        "pretrain": None if arm.pretrain is None else to_mapping(arm.pretrain),
        "before": arm.before,
        "total_time_of": arm.total_time_of,
        "points": settings.points,
        "stores": {
            "finetune": store_signs(arm.finetune.data.store),
            "pretrain": None if arm.pretrain is None else _signs(arm.pretrain.data),
        },
    }
    if arm.before is not None:
        said |= {
            "pretraining_seeds": settings.pretraining_seeds,
            "pretrain_per_fold": settings.pretrain_per_fold,
        }
    if settings.folds:
        said["folds"] = list(settings.folds)
    if arm.pretrain is not None:
        said |= {"budget": arm.budget or settings.budget, "budget_arm": settings.budget_arm}
    if arm.total_time_of is not None:
        said["total_in"] = "seconds"
    if settings.rates:
        said["rates"] = list(settings.rates)
        said["tuned_with_labels"] = settings.labels[0]
        said["tuned_per_fold"] = bool(settings.folds)
        if settings.warmups:
            said["warmups"] = list(settings.warmups)
    # As it will be read back: tuples are lists there.
    plain: dict[str, Any] = load(dump(said))
    return plain


def _signs(data: DataConfig) -> dict[str, Any] | None:
    """What the store or the stores of a pre-training hold."""
    if not data.stores:
        return store_signs(data.store)
    return {store: store_signs(store) for store in data.stores}


def store_signs(store: str | None) -> dict[str, str] | None:
    """What a store holds, as short signs that change with it; None where none is named."""
    if store is None:
        return None
    opened = open_store(store)
    cases = [(e.case_id, e.key, e.part, e.subject_id) for e in opened.entries.values()]
    contents = {
        "cases": cases,
        "fingerprint": opened.fingerprint,
        "preparation": opened.preparation,
    }
    return {name: digest(content)[:SIGN_LETTERS] for name, content in contents.items()}


def differing_settings(
    there: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted keys with the value that was planned and that of now."""
    differing = differing_keys(_completed(there, now), now)
    # Which pre-training a run starts from is looked up in the run itself.
    return {key: pair for key, pair in differing.items() if key != "pretraining_seeds"}


def changed_plan(
    name: str, arm: Arm, differing: Mapping[str, tuple[Any, Any]], begun: Sequence[str]
) -> ConfigError:
    """Says that an arm with runs was changed.

    Args:
        name: of the arm.
        arm: as it is now.
        differing: what changed.
        begun: names of the runs.
    """
    runs = ", ".join(f"`{run}`" for run in begun[:3]) + (", ..." if len(begun) > 3 else "")
    stores = {key.split(".")[1] for key in differing if key.startswith("stores.")}
    if stores and all(key.startswith("stores.") for key in differing):
        configs = {"finetune": arm.finetune, "pretrain": arm.pretrain}
        named = {
            store
            for part in stores
            if (config := configs[part]) is not None
            for store in config.data.stores or (config.data.store,)
        }
        listed = " and ".join(f"`{store}`" for store in sorted(map(str, named)))
        what = f"{listed} holds other cases or another preparation than when arm `{name}` began"
    else:
        listed = ", ".join(f"`{key}` ({was} there, {is_} now)"
                           for key, (was, is_) in list(differing.items())[:5])  # fmt: skip
        what = f"arm `{name}` was planned with other settings: {listed}"
    return ConfigError(
        f"{what}; runs that follow from it are there: {runs}",
        remedy="choose another --out, or give the changed arm a name of its own",
        code="config-differs",
    )


def _completed(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """With what settings meant that an older version did not know.

    Of its stores such a plan says nothing: they are taken for what they are.
    """
    whole = {"stores": now["stores"], **there}
    if there["total_time_of"] is not None and "total_in" not in there:
        whole["total_in"] = there["budget"]
        if there["pretrain"] is None:
            del whole["budget"], whole["budget_arm"]
    if "rates" in there:
        whole.setdefault("tuned_per_fold", False)
    kinds: dict[str, type[PretrainConfig | FinetuneConfig]] = {
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
    }
    if whole["pretrain"] is not None:
        whole["pretrain"] = _with_its_norm(whole["pretrain"])
    for part, kind in kinds.items():
        if whole[part] is not None:
            config = from_mapping(whole[part], kind, where=f"`{PLAN}`")
            whole[part] = load(dump(to_mapping(config)))
    return whole


def _with_its_norm(pretrain: Mapping[str, Any]) -> Mapping[str, Any]:
    """A pre-training's config with the norm that its heads had before it could be chosen."""
    objective = pretrain.get("objective", {})
    contrast = objective.get("contrast", {})
    if objective.get("name") not in NORMED or "projector_norm" in contrast:
        return pretrain
    contrast = {**contrast, "projector_norm": "layer"}
    return {**pretrain, "objective": {**objective, "contrast": contrast}}
