"""Names and colours of a cohort's labels, from files beside its label maps or from their headers.

The source's own list of labels (`dataset.json`) decides about values and names; a file beside the
label maps adds colours to it, or stands in its place where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mim3d.data.classes import ClassTable
from mim3d.data.cohort.cases import Cohort
from mim3d.data.files.segments import ENDING, Segment, read_segments
from mim3d.data.label_tables import LabelTable, label_tables, read_label_table
from mim3d.foundation.errors import UserError

OF_OTHERS = (
    "the `labels.json` beside the label maps is another program's and names nothing here: values "
    'are named by `{"classes": [{"value": 1, "name": "liver"}]}`'
)


def with_named_labels(cohort: Cohort, source: Path) -> Cohort:
    """The cohort with the names and colours that lie beside its label maps.

    Args:
        cohort: as its source has been read.
        source: the file or folder that was read.

    Raises:
        UserError: a table that cannot be read, one value with two names, or two with one.
    """
    labels = [case.label for case in cohort.cases if case.label is not None]
    if not labels:
        return cohort
    root = source if source.is_dir() else source.parent
    segments = _segments([label for label in labels if label.name.lower().endswith(ENDING)])
    table = segments
    path: Path | None = None
    for one in label_tables(_folders(labels, root)):
        if (read := read_label_table(one)) is not None:
            table, path = read, one
            break
        cohort = replace(cohort, remarks=(*cohort.remarks, OF_OTHERS))
    if table is None:
        return cohort
    if cohort.classes is not None:
        return replace(cohort, classes=_coloured(cohort.classes, table))
    where = path.name if path is not None else "the headers of the label maps"
    remark = f"names of {len(table.names)} label value(s) come from `{where}`"
    return replace(cohort, classes=table.as_classes(path), found=(*cohort.found, remark))


def _folders(labels: Sequence[Path], root: Path) -> list[Path]:
    """Where a table may lie: beside label maps of one folder, above them, in `root`."""
    parents = dict.fromkeys(label.parent for label in labels)
    found = dict.fromkeys(parents) if len(parents) == 1 else {}
    for parent in parents:
        if parent.is_relative_to(root):
            between = [one for one in parent.parents if one.is_relative_to(root)]
            found |= dict.fromkeys(between)
    # The deepest first: what lies nearest to the label maps counts.
    return sorted(found, key=lambda one: (-len(one.parts), one))


def _coloured(classes: ClassTable, table: LabelTable) -> ClassTable:
    rows = zip(classes.values, classes.colours, strict=True)
    return replace(classes, colours=tuple(table.colours.get(v, rgb) for v, rgb in rows))


def _segments(paths: Sequence[Path]) -> LabelTable | None:
    """What the headers of `.seg.nrrd` files say, if all say the same."""
    first: dict[int, tuple[Segment, Path]] = {}
    for path in paths:
        if not path.is_file():
            continue  # told when the case is read
        for segment in read_segments(path):
            known, where = first.setdefault(segment.value, (segment, path))
            if known.name != segment.name:
                raise UserError(
                    f"label value {segment.value} is called `{known.name}` in `{where.name}` and "
                    f"`{segment.name}` in `{path.name}`",
                    where=str(path.parent),
                    remedy="export all segmentations with the same values, or write them as "
                    "`.nii.gz` and name the values in a `labels.json`",
                    code="segments-differ",
                )
    if not first:
        return None
    colours = {v: s.colour for v, (s, _) in first.items() if s.colour is not None}
    return LabelTable({0: "background", **{v: s.name for v, (s, _) in first.items()}}, colours)
