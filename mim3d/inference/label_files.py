"""Names and colours of labels for viewers, written beside predictions.

NIfTI has no place for them, so each viewer has a file of its own: ITK-SNAP's label description
(`itksnap -g image.nii.gz -s prediction.nii.gz -l labels.itksnap.txt`), 3D Slicer's colour table,
and `labels.json` for programs, which `mim3d evaluate` reads.
"""

from __future__ import annotations

import json
from pathlib import Path

from mim3d.data.classes import ClassTable
from mim3d.data.regions import RegionScheme
from mim3d.foundation.atomic import write_text

ITKSNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Where:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    MSH:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""


def write_label_files(
    folder: Path | str, classes: ClassTable, regions: RegionScheme | None = None
) -> tuple[Path, Path, Path]:
    """Writes `labels.json`, `labels.itksnap.txt` and `labels.ctbl`, each whole.

    Args:
        folder: where the predictions lie.
        classes: the values that predictions hold.
        regions: the scheme the network predicts, for `mim3d evaluate`.

    Returns:
        The three files.
    """
    texts = label_texts(classes, regions)
    for name, text in texts.items():
        write_text(Path(folder) / name, text)
    first, second, third = (Path(folder) / name for name in texts)
    return first, second, third


def label_texts(classes: ClassTable, regions: RegionScheme | None = None) -> dict[str, str]:
    """What `write_label_files` writes, by the files' names."""
    said = {**classes.as_json(), "regions": None if regions is None else regions.name}
    return {
        "labels.json": json.dumps(said, indent=1, allow_nan=False) + "\n",
        "labels.itksnap.txt": itksnap_text(classes),
        "labels.ctbl": slicer_text(classes),
    }


def itksnap_text(classes: ClassTable) -> str:
    """ITK-SNAP's label description: one line a value, the background transparent."""
    lines = []
    for value, name, (red, green, blue) in _rows(classes):
        shown = int(value != 0)
        clean = " ".join(name.replace('"', "'").split())
        lines.append(
            f"{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}"
            f'    "{clean}"'
        )
    return ITKSNAP_HEAD + "\n".join(lines) + "\n"


def slicer_text(classes: ClassTable) -> str:
    """3D Slicer's colour table: index, name without blanks, red, green, blue, opacity."""
    lines = ["# Color table file labels.ctbl", f"# {classes.count} values"]
    for value, name, (red, green, blue) in _rows(classes):
        opacity = 255 if value else 0
        lines.append(f"{value} {'_'.join(name.split())} {red} {green} {blue} {opacity}")
    return "\n".join(lines) + "\n"


def _rows(classes: ClassTable) -> zip[tuple[int, str, tuple[int, int, int]]]:
    return zip(classes.values, classes.names, classes.colours, strict=True)
