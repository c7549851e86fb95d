"""How trainings went: curves with seeds as bands, what runs drew, and what they cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from mim3d.foundation.reporting import duration
from mim3d.pages.report.elements import (
    Cell,
    Details,
    Element,
    Notes,
    Row,
    Section,
    Table,
    numeric,
)
from mim3d.pages.report.figures import Gallery, Picture, read_picture
from mim3d.pictures.curves import Curve, draw_curves, draw_loss
from mim3d.workflows.learning import PICTURE, QUANTITIES
from mim3d.workflows.report.desk import HALF, Desk
from mim3d.workflows.report.runs import VERBS, Group, RunMade

FINETUNED = {
    "dice": "Dice",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "ROC-AUC",
    "mae": "mean absolute error",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
"""Numbers of a fine-tuning's validation, and what they are called."""
AUDIT = "dice_encoder_zeroed"
RECONSTRUCTING = ("mae", "simmim", "smit", "autoencoder", "denoising")
"""Pretext tasks whose loss is one of `objective.target`; the others compare views of a crop."""
PRETRAINED = {"fixed_loss": "loss on fixed crops", "probe_dice": "linear probe, Dice",
              "probe_r2": "linear probe, R2"}  # fmt: skip
"""Numbers of a pre-training that its last line is told by."""


def headline(group: Group) -> tuple[str, str, list[float]]:
    """The number that says most of a group: its key, its name, and the last value of each seed."""
    names = FINETUNED if group.verb == "finetune" else PRETRAINED
    for key, name in names.items():
        values = group.lasts(key)
        if values:
            return key, name, values
    losses = [values[-1] for _, values in group.curves("loss", kind="train")]
    return "loss", "training loss", losses


def spread(values: Sequence[float], digits: int = 3) -> Cell:
    """A mean, with its lowest and highest where there are several."""
    if not values:
        return Cell("-")
    mean = statistics.fmean(values)
    text = f"{mean:.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return Cell(text, mean)


def curves_of(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    """Losses and validations of each verb against the steps."""
    for verb in dict.fromkeys(group.verb for group in groups):
        alike = [group for group in groups if group.verb == verb]
        pictures = [*_losses(alike, desk), *_validations(alike, verb, desk)]
        if pictures:
            heading = VERBS.get(verb, verb).capitalize()
            yield Section(heading, (Gallery(pictures, is_wide=True),), rank=3)


def _losses(groups: Sequence[Group], desk: Desk) -> Iterator[Picture]:
    """The training loss; runs that minimise different things have figures of their own."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        kinds.setdefault(_minimised(group), []).append(group)
    for kind, alike in kinds.items():
        # Those that are in another figure are named with nothing, so that all keep their colours.
        arms = {
            group.name: group.curves("loss", kind="train") if group in alike else []
            for group in groups
        }
        title = "training loss" + (f": {kind}" if len(kinds) > 1 else "")
        if not any(arms.values()):
            continue
        if sum(map(len, arms.values())) == 1:
            [(steps, values)] = next(curves for curves in arms.values() if curves)
            yield desk.picture(
                partial(draw_loss, steps=steps, loss=values, title=title, size=HALF),
                f"{title} of {alike[0].name} against steps",
                "Mean since the line before, and its running median.",
            )
            continue
        yield desk.picture(
            partial(draw_curves, arms=arms, quantity="loss", title=title, size=HALF),
            f"{title} against steps, one line each for {_drawn(arms)}",
            _banded(arms),
        )


def _minimised(group: Group) -> str:
    said = group.first.settings
    if group.verb != "finetune":
        name = str(said.get("objective.name"))
        keys = ("objective.target", "objective.loss") if name in RECONSTRUCTING else ()
        return ", ".join([name, *(str(said[key]) for key in keys)])
    if said.get("task", "segmentation") != "segmentation":
        return f"{said['task']}, {said.get('classification.loss') or 'loss by task'}"
    return str(said.get("objective.loss"))


def _validations(groups: Sequence[Group], verb: str, desk: Desk) -> Iterator[Picture]:
    quantities: dict[str, tuple[str, Mapping[str, str]]]
    if verb == "finetune":
        quantities = {key: (f"validation, {name}", {}) for key, name in FINETUNED.items()}
    else:
        quantities = {"fixed_loss": ("loss on fixed crops", {})}
        for title, names, stay in QUANTITIES:
            for place, (key, called) in enumerate(names.items()):
                # Levels belong to the first of two curves of a quantity.
                name = title if len(names) == 1 else f"{title}, {called}"
                quantities[key] = (name, stay if place == 0 else {})
    for key, (title, levels) in quantities.items():
        arms = {group.name: group.curves(key) for group in groups}
        if not any(len(steps) > 1 for curves in arms.values() for steps, _ in curves):
            continue
        stays = _levels(groups, levels) if len(groups) == 1 else {}
        yield desk.picture(
            partial(draw_curves, arms=arms, quantity="", title=title, size=HALF, levels=stays),
            f"{title} against steps, one line each for {_drawn(arms)}",
            _banded(arms),
        )


def _levels(groups: Sequence[Group], names: Mapping[str, str]) -> dict[str, float]:
    found = {called: groups[0].lasts(key) for key, called in names.items()}
    return {called: statistics.fmean(values) for called, values in found.items() if values}


def _drawn(arms: Mapping[str, Sequence[Curve]]) -> str:
    return ", ".join(name for name, curves in arms.items() if curves)


def _banded(arms: Mapping[str, Sequence[Curve]]) -> str:
    is_banded = any(len(curves) > 1 for curves in arms.values())
    return "Line: mean over seeds. Band: lowest to highest seed." if is_banded else ""


def panels_of(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    """What runs drew while they trained: the last picture of each kind, earlier ones folded."""
    for group in groups:
        last: list[Picture] = []
        earlier: list[Picture] = []
        for run in group.runs:
            kinds: dict[str, list[Picture]] = {}
            for path in run.pictures:
                if path.name == PICTURE:
                    continue  # it is drawn anew, with the other seeds
                kind, _, step = path.stem.rpartition("_")
                if not step.isdecimal():
                    kind, step = path.stem, ""
                caption = f"`{run.name}`: {kind.replace('_', ' ')}"
                caption += f", step {int(step):,}" if step else ""
                says = f"{kind.replace('_', ' ')} of run {run.name} {step}".strip()
                kinds.setdefault(kind, []).append(read_picture(path, says, caption))
            for pictures in kinds.values():
                last.append(pictures[-1])
                # The first and one from the middle show the way; all would be most of the page.
                earlier += [pictures[place] for place in {0, len(pictures) // 2}
                            if place < len(pictures) - 1]  # fmt: skip
        if last:
            yield Gallery(last, is_wide=True)
        if earlier:
            yield Details(f"`{group.name}`: earlier steps", (Gallery(earlier, is_wide=True),))


def audit_of(groups: Sequence[Group]) -> Iterator[Element]:
    """Dice with the encoder's output set to zero: a gain needs an encoder that is used."""
    rows: list[Row] = [
        [f"`{group.name}`", spread(group.lasts("dice")), spread(group.lasts(AUDIT))]
        for group in groups
        if group.lasts(AUDIT)
    ]
    if rows:
        head = ["run", "validation Dice", "encoder's output zeroed"]
        caption = "Encoder use: with its output set to zero a segmenter that needs it falls."
        yield Table(head, rows, caption=caption)


def costs_of(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    """Steps, time and size of every training."""
    rows: list[Row] = []
    total = 0.0
    for group in groups:
        seconds = [_seconds(run) for run in group.runs]
        known = [one for one in seconds if one is not None]
        if group.verb == "convert":
            continue
        total += sum(known)
        each = statistics.fmean(known) if known else None
        rows.append(
            [
                f"`{group.name}`",
                VERBS.get(group.verb, group.verb),
                Cell(str(len(group.runs)), float(len(group.runs))),
                Cell(_steps(group), float(group.first.status.get("step", 0) or 0)),
                numeric(_mean(group, "crops_per_second"), 1),
                Cell("-" if each is None else duration(each), each),
                Cell(duration(sum(known)) if known else "-", sum(known) if known else None),
                _millions(_mean(group, "parameters")),
                _millions(_mean(group, "trained_parameters")),
            ]
        )
    if not rows:
        return
    head = ["run", "verb", "runs", "steps", "crops/s", "time of one", "time of all",
            "parameters", "trained"]  # fmt: skip
    empty = [n for n in range(2, len(head)) if all(_is_empty(row[n]) for row in rows)]
    kept = [n for n in range(len(head)) if n not in empty]
    caption = f"All together {duration(total)} of training, without evaluation."
    yield Table([head[n] for n in kept], [[row[n] for n in kept] for row in rows], caption=caption)


def _is_empty(cell: Cell | str) -> bool:
    return isinstance(cell, Cell) and cell.text == "-"


def _seconds(run: RunMade) -> float | None:
    return _number(run, "seconds")


def _mean(group: Group, key: str) -> float | None:
    known = [value for run in group.runs if (value := _number(run, key)) is not None]
    return statistics.fmean(known) if known else None


def _number(run: RunMade, key: str) -> float | None:
    """A number that the training ended with; None where it says none."""
    found = run.training.get(key)
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return float(found) if is_number else None  # type: ignore[arg-type]


def _millions(count: float | None) -> Cell:
    return Cell("-") if count is None else Cell(f"{count / 1e6:.2f} M", count)


def _steps(group: Group) -> str:
    done = {int(run.status.get("step", 0) or 0) for run in group.runs}
    asked = {int(run.settings["training.steps"]) for run in group.runs}
    told = " to ".join(f"{step:,}" for step in sorted({min(done), max(done)}))
    return told if done == asked else f"{told} of {max(asked):,}"


def unfinished(groups: Sequence[Group]) -> Notes:
    """Runs that are not done, that left steps out, or whose log is broken."""
    lines = []
    for run in (run for group in groups for run in group.runs):
        if run.state not in ("done", "converted"):
            why = run.status.get("reason")
            lines.append(f"run `{run.name}` is {run.state}" + (f": {why}" if why else ""))
        skipped = run.training.get("skipped")
        if type(skipped) is int and skipped > 0:
            lines.append(f"run `{run.name}` left out {skipped} steps that were not finite")
        if run.broken_lines:
            lines.append(f"the log of run `{run.name}` has {run.broken_lines} broken lines")
    return Notes(lines, "warning")
