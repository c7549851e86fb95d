"""A model card that is filled from a run: what it is, what it saw, how good it is, what it cannot.

After Mitchell et al., arXiv:1810.03993. Nothing is claimed that the run does not hold; what only
its makers know is left to them, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mim3d
from mim3d.config.verbs import FinetuneConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.foundation.documents import read_object
from mim3d.workflows.export.subject import Subject

TAGS = {"segmentation": "image-segmentation", "classification": "image-classification"}
"""Pipelines of the hub; an encoder is `image-feature-extraction`."""
CONVERTED = "converted_from"
"""Of the record of a run of `mim3d convert`: the digest of the checkpoint."""
VERSIONS = ("mim3d", "torch", "numpy", "python")


def model_card(subject: Subject) -> str:
    """The text of `README.md`, Markdown with the hub's front matter."""
    sections = [
        ("Use", _use(subject)),
        ("Network", _network(subject)),
        ("Input", _input(subject)),
        ("Training data", _data(subject)),
        ("Training", _training(subject)),
        ("Metrics", _metrics(subject)),
        ("Limits", _limits(subject)),
        ("To be added by who publishes it", _open()),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return f"{_front(subject)}\n# {_title(subject)}\n\n{_summary(subject)}\n\n{body}\n"


def _front(subject: Subject) -> str:
    tags = ["mim3d", "medical", "3d", "masked-image-modeling", *subject.record["modalities"]]
    head = {
        "library_name": "mim3d",
        "pipeline_tag": TAGS.get(subject.task, "image-feature-extraction"),
        "tags": list(dict.fromkeys(tags)),
    }
    return f"---\n{dump(head)}---\n"


def _title(subject: Subject) -> str:
    what = {"segmentation": "Segmenter", "encoding": "Encoder"}.get(subject.task, "Classifier")
    channels = _listed(subject.record["channel_names"])
    modality = _modality(subject)
    return f"{what} of {modality} volumes ({channels})" if modality else f"{what} of volumes"


def _summary(subject: Subject) -> str:
    match subject.task:
        case "encoding":
            origin = (
                "from another program" if _is_foreign(subject) else "pre-trained without labels"
            )
            done = f"A vision transformer for volumes, {origin}"
        case "segmentation":
            done = f"A UNETR that labels {_listed(subject.outputs)}"
        case _:
            done = f"A vision transformer that answers {_listed(subject.outputs)} for a volume"
    return f"{done}, made with mim3d {mim3d.__version__}."


def _use(subject: Subject) -> str:
    code = ["import mim3d", "", 'encoder = mim3d.VolumeViT.load("THIS_FOLDER")']
    if subject.task == "segmentation":
        code.append('segmenter = mim3d.UNETR.load("THIS_FOLDER")')
    verb = "mim3d finetune CONFIG --init THIS_FOLDER"
    if subject.network is not None:
        verb = "mim3d predict THIS_FOLDER scan.nii.gz --out predictions"
    block = "\n".join(code)
    return (
        "Meant for research on images like those it was trained on: as a start for fine-tuning, "
        "for features, and for answers that someone checks. It is no medical device, and no "
        f"diagnosis may rest on it.\n\n```python\n{block}\n```\n\n```\n{verb}\n```"
    )


def _network(subject: Subject) -> str:
    encoder = subject.encoder
    count = sum(parameter.numel() for parameter in (subject.network or encoder).parameters())
    rows = [
        ("width x depth x heads", f"{encoder.width} x {encoder.depth} x {encoder.heads}"),
        ("patch", f"{_sides(encoder.patch)} voxels"),
        ("positions", encoder.config.positions),
        ("channels", encoder.channels),
        ("parameters", f"{count:,}"),
    ]
    if isinstance(subject.config, FinetuneConfig) and subject.task == "segmentation":
        rows.append(("decoder", subject.config.decoder.name))
        rows.append(("outputs", _listed(subject.outputs)))
    return _rows(rows)


def _input(subject: Subject) -> str:
    facts, rule = subject.facts(), subject.record["preparation"]
    spacing = facts["default_spacing_mm"]
    rows = [
        ("channels", ", ".join(facts["channels"])),
        ("modality", ", ".join(subject.record["modalities"])),
        ("axes", "x y z in RAS+"),
        ("crop in training", f"{_sides(subject.config.data.crop_size)} voxels"),
        ("resampled to", f"{_sides(rule['spacing_mm'])} mm" if rule.get("spacing_mm") else
         "nothing: each volume keeps its spacing"),
        ("spacing where none is said", f"{_sides(spacing)} mm" if spacing else "must be said"),
    ]  # fmt: skip
    return _rows([*rows, *_intensities(subject)])


def _intensities(subject: Subject) -> list[tuple[str, str]]:
    """How stored numbers become the network's, a row a rule."""
    rule, modalities = subject.facts()["preparation"], subject.record["modalities"]
    if rule.get("intensity_range"):
        low, high = rule["intensity_range"]
        return [("intensities", f"{low:g} to {high:g} become 0 to 1")]
    rows = []
    if "ct" in modalities and rule.get("window_hu"):
        low, high = rule["window_hu"]
        rows.append(("intensities", f"CT: {low:g} to {high:g} HU become 0 to 1"))
    if set(modalities) - {"ct"} and rule.get("clip_percentiles"):
        low, high = rule["clip_percentiles"]
        rows.append(("intensities", f"clipped to the percentiles {low:g} to {high:g} of the body, "
                     "then mean 0 and deviation 1 over it"))  # fmt: skip
    return rows


def _data(subject: Subject) -> str:
    record = subject.record
    if _is_foreign(subject):
        return "The weights come from another program, and the run does not know what they saw."
    stored = _table(_table(record.get("fingerprint")).get("stored"))
    rows: list[tuple[str, Any]] = [("volumes trained on", len(record["trained_on"]))]
    for name, unit in (("shape", "voxels"), ("spacing_mm", "mm")):
        found = _table(stored.get(name))
        if {"min", "median", "max"} <= set(found):
            middle, span = _sides(found["median"]), _span(found)
            rows.append((name.removesuffix("_mm"), f"{middle} {unit} (median; {span})"))
    subjects = _table(record.get("fingerprint")).get("subjects")
    if subjects is not None:
        rows.append(("subjects in the cohort", subjects))
    if subject.classes is not None:
        rows.append(("labels", _listed(subject.classes.names)))
    return f"{_rows(rows)}\n\nThe hashes of the images are in `preparation.json`, without names."


def _training(subject: Subject) -> str:
    if _is_foreign(subject):
        return (
            "None here: `mim3d convert` took the weights out of a checkpoint whose SHA-256 is "
            f"`{subject.record[CONVERTED]}`."
        )
    config, default = subject.config, type(subject.config)()
    versions = _read(subject.run / "versions.json")
    seconds = _read(subject.run / "results.json").get("seconds")
    rows: list[tuple[str, Any]] = [
        ("verb", {"finetune": "fine-tuning"}.get(subject.record["verb"], "pre-training")),
        ("steps", f"{subject.step:,}"),
        ("batch", config.training.batch_size),
        ("learning rate", f"{config.optim.lr:g}"),
        ("seed", config.training.seed),
    ]  # fmt: skip
    if isinstance(seconds, int | float):
        rows.append(("time", f"{seconds / 60:.0f} min"))
    rows += [(name, versions[name]) for name in VERSIONS if name in versions]
    if isinstance(config, FinetuneConfig):
        scratch = config.init in (None, "none")
        rows.append(("start", "from scratch" if scratch else "from a pre-trained encoder"))
    else:
        rows.append(("objective", config.objective.name))
        rows.append(("mask ratio", config.objective.mask_ratio))
    same = to_mapping(config) == to_mapping(default)
    return _rows(rows) + ("" if same else "\n\nEvery setting is in `mim3d.yaml`.")


def _metrics(subject: Subject) -> str:
    results = _table(_read(subject.run / "results.json").get("validation"))
    rows = [
        (f"{name}: {key}", f"{value:.4f}")
        for name, numbers in results.items()
        for key, value in _table(numbers).items()
        if isinstance(value, int | float)
    ]
    if not rows:
        return "None: the run measured nothing on volumes of its own cohort."
    steps, other = subject.config.training.steps, ""
    if subject.step != steps:
        other = f" They are of the weights after {steps:,} steps, these of step {subject.step:,}."
    return (
        "Of the validation list of the same cohort, at the end of training; not of other scanners "
        f"or hospitals.{other}\n\n{_rows(rows, ('measure', 'value'))}"
    )


def _limits(subject: Subject) -> str:
    stored = _table(_table(subject.record.get("fingerprint")).get("stored"))
    spacing = _table(stored.get("spacing_mm"))
    if _is_foreign(subject):
        lines = ["Which images it was trained on is not known to the run."]
    else:
        lines = [
            f"Trained on {_modality(subject)} alone; other modalities were never seen.",
            f"Trained on {len(subject.record['trained_on'])} volumes; age, sex, disease and "
            "scanner of their subjects are not known to the run.",
        ]
    if {"min", "max"} <= set(spacing):
        lines.append(f"Spacings seen: {_span(spacing)} mm. Beyond them nothing was measured.")
    if subject.classes is not None:
        lines.append("Structures that are not among its labels become background or something "
                     "else.")  # fmt: skip
    if subject.task == "encoding":
        lines.append("Whether it helps a task shows only against the same network from scratch.")
    return "\n".join(f"- {line}" for line in lines)


def _open() -> str:
    wanted = ("licence of weights and data", "where the data come from, and who may be in them",
              "ethics approval", "citation", "results on other data")  # fmt: skip
    return "\n".join(f"- {one}" for one in wanted)


def _modality(subject: Subject) -> str:
    known = {"ct": "CT", "mr": "MR"}
    names = dict.fromkeys(known.get(one, "other") for one in subject.record["modalities"])
    return " and ".join(names)


def _is_foreign(subject: Subject) -> bool:
    return CONVERTED in subject.record


def _rows(rows: Iterable[tuple[str, Any]], head: Sequence[str] = ("", "")) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(value: Any) -> str:
    """One line that no cell of a table ends early."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _listed(names: Sequence[str]) -> str:
    return " ".join(", ".join(names).split())


def _sides(values: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in values)


def _span(found: Mapping[str, Any]) -> str:
    low, high = _sides(found["min"]), _sides(found["max"])
    return f"all {low}" if low == high else f"{low} to {high}"


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> Mapping[str, Any]:
    return read_object(path) if path.is_file() else {}
