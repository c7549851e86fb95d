"""`mim3d info`: what a run, a store, a hub folder or a results file is, in a dozen lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mim3d.config.encoder import EncoderConfig
from mim3d.config.reading import read_config
from mim3d.config.training import OptimConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import differences, to_mapping
from mim3d.evaluation.results import read_results
from mim3d.evaluation.table import table
from mim3d.evaluation.target_table import target_table
from mim3d.evaluation.targets import holds_target_results, read_target_results
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import load_preparation


def info(path: str, *, reporter: Reporter | None = None) -> Result:
    """Describes what mim3d made.

    Args:
        path: a run folder, a store folder, a folder of `export --format hub-folder`, or a
            `results.json`.
        reporter: unused; every verb takes one.

    Raises:
        UserError: the path is none of these.
    """
    place = Path(path)
    if place.is_file():
        return _of_results(place)
    if (place / "manifest.json").is_file():
        return _of_store(place)
    if (place / "config.yaml").is_file():
        return _of_run(place)
    # Late: only here is torch needed.
    from mim3d.models.saved import is_hub

    if is_hub(place):
        return _of_hub(place)
    raise UserError(
        f"`{path}` is neither a run, a store, a hub folder nor a results file",
        remedy="give a folder that `mim3d prepare`, `pretrain`, `finetune`, `convert` or `export` "
        "wrote",
        code="not-ours",
    )


def _of_results(place: Path) -> Result:
    are_of_targets = holds_target_results(place)
    text = (
        target_table(read_target_results(place)) if are_of_targets else table(read_results(place))
    )
    return Result(text=text, facts=read_object(place))


def _of_store(place: Path) -> Result:
    from mim3d.data.store import open_store

    store = open_store(place)
    parts = {part: len(store.ids(part)) for part in ("training", "validation", "test")}
    subjects = len({store.subject(case) for case in store.cases})
    labelled = sum(entry.has_label for entry in store.entries.values())
    classes = store.classes.names if store.classes is not None else ()
    facts: dict[str, Any] = {
        "kind": "store",
        "name": store.name,
        "cases": parts,
        "subjects": subjects,
        "labelled": labelled,
        "channels": list(store.channel_names),
        "modalities": list(store.modalities),
        "median_spacing_mm": list(store.median_spacing_mm),
        "classes": list(classes),
        "preparation": store.preparation,
    }
    spacing = " x ".join(f"{side:g}" for side in store.median_spacing_mm)
    lines = [
        f"store of {sum(parts.values())} cases of {subjects} subjects: {store.name}",
        f"lists     {', '.join(f'{count} {part}' for part, count in parts.items() if count)}",
        f"labels    {labelled} cases; {', '.join(classes) or 'none'}",
        f"channels  {', '.join(store.channel_names)} ({', '.join(store.modalities)})",
        f"spacing   {spacing} mm (median)",
    ]
    return Result(text="\n".join(lines), facts=facts)


def _of_hub(place: Path) -> Result:
    """What its own files say; `mim3d doctor` compares the checksum of the weights."""
    from mim3d.models.saved import HUB_RUN, hub_config

    hub, record = hub_config(place), load_preparation(place)
    config = _config(place / HUB_RUN, record["verb"])
    spacing = hub["default_spacing_mm"]
    lines = [
        f"hub folder of a {hub['architectures'][0]}, step {hub['step']:,}, by mim3d "
        f"{hub['mim3d_version']}",
        _encoder_line(config),
        f"outputs   {', '.join(hub['outputs']) or 'hidden states'}",
        f"channels  {', '.join(record['channel_names']) or config.encoder.channels} "
        f"({', '.join(record['modalities']) or 'modality unknown'})",
        f"spacing   {' x '.join(f'{side:g}' for side in spacing)} mm where none is said"
        if spacing
        else "spacing   must be said",
        _trained_line(record),
    ]
    return Result("\n".join(lines), {"kind": "hub folder", "hub": hub})


def _config(path: Path, verb: str) -> PretrainConfig | FinetuneConfig:
    if verb == "finetune":
        return read_config(path, FinetuneConfig)
    return read_config(path, PretrainConfig)


def _encoder_line(config: PretrainConfig | FinetuneConfig) -> str:
    encoder = config.encoder
    own = [f"{name} {getattr(encoder, name)}" for name in ("width", "depth", "heads")
           if getattr(encoder, name) is not None]  # fmt: skip
    size = ", ".join(map(str, encoder.patch))
    named = ", ".join(own) if len(own) == 3 else ", ".join([encoder.preset, *own])
    return f"encoder   {named}, patch ({size}), positions {encoder.positions}, {_channels(encoder)}"


def _trained_line(record: dict[str, Any]) -> str:
    if "converted_from" in record:
        return "trained   elsewhere, on what is not known"
    return f"trained   on {len(record['trained_on'])} cases"


def _of_run(place: Path) -> Result:
    record = load_preparation(place)
    config = _config(place / "config.yaml", record["verb"])
    status = _read(place / "status.json")
    verb = {"finetune": "fine-tuning"}.get(record["verb"], "pre-training")
    verb = "converted" if "converted_from" in record else verb
    origin = {None: "scratch", "none": "scratch"}.get(config.init, f"`{config.init}`")
    lines = [
        f"{verb} run, {status.get('state', 'not started')} "
        f"({_number(status.get('step', 0)):,} of {config.training.steps:,} steps)",
        f"{_encoder_line(config)}; {_learning(config.optim)}",
        f"start     {origin}",
        _trained_line(record),
    ]
    results = _read(place / "results.json") or _table(status.get("training"))
    for name, numbers in _table(results.get("validation")).items():
        told = ", ".join(
            f"{key} {_number(value):.4f}"
            for key, value in _table(numbers).items()
            if value is not None
        )
        lines.append(f"{name:<9} {told}")
    changed = differences(config, type(config)())
    lines.append(f"settings  {len(changed)} differ from the defaults: {', '.join(changed)}")
    facts = {"kind": verb, "status": status, "config": to_mapping(config), "results": results}
    return Result(text="\n".join(lines), facts=facts)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int | float:
    """What stands in a record for a number; one that rotted is shown as what it is not."""
    return value if type(value) in (int, float) else float("nan")


def _channels(encoder: EncoderConfig) -> str:
    if not encoder.contrasts:
        return f"{encoder.channels} channel(s)"
    return f"any of the contrasts {', '.join(encoder.contrasts)}"


def _learning(optim: OptimConfig) -> str:
    """What of the encoder learns, and what is kept."""
    match optim.adapt:
        case "full":
            return "all of it is trained and kept"
        case "frozen":
            return "frozen: none of it is trained, all of it is kept"
        case "lora":
            maps = ", ".join(optim.lora_on)
            return f"adapters of rank {optim.lora_rank} on {maps} are trained and added to it"


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
