"""Volumes out of files and into them, by the rules of the guarded reader."""

from mim3d.config.read import ReadConfig
from mim3d.data.files.archive_rows import archive_of, is_there
from mim3d.data.files.dicom import SeriesSummary, list_series
from mim3d.data.files.keys import content_key
from mim3d.data.files.reading import (
    Geometry,
    ReadWarning,
    check_same_grid,
    read_geometry,
    read_label,
    read_pair,
    read_volume,
)
from mim3d.data.files.writing import write_label, write_volume

__all__ = [
    "Geometry",
    "ReadConfig",
    "ReadWarning",
    "SeriesSummary",
    "archive_of",
    "check_same_grid",
    "content_key",
    "is_there",
    "list_series",
    "read_geometry",
    "read_label",
    "read_pair",
    "read_volume",
    "write_label",
    "write_volume",
]
