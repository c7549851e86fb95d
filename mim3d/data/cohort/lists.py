"""Changing a cohort as a whole: published lists of cases, and names that tell nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim3d.config.shipped import shipped_folder
from mim3d.data.classes import ClassTable
from mim3d.data.cohort.cases import Case, Cohort, listed
from mim3d.foundation.documents import DocumentError, read_document
from mim3d.foundation.errors import ConfigError, UserError

REST = "rest"


def apply_split(cohort: Cohort, split: Path | str) -> Cohort:
    """The cohort with the lists of a split file in place of its own.

    A split file is JSON with `training` and `validation` (and perhaps `test`): case ids, or, for
    one of them, the word `rest`. An id that is all digits also fits a case whose name ends in it
    after something else than a digit: `0035` fits `img0035`. Cases in no list are left out.

    Args:
        cohort: any.
        split: the file, or the name of one that ships with mim3d, for example `btcv_24_6`.

    Raises:
        ConfigError: it is no split file.
        UserError: cases that it lists are not in the cohort.
    """
    content = _load(_located(split))
    lists = {part: content[part] for part in ("training", "validation", "test") if part in content}
    named = {part: ids for part, ids in lists.items() if ids != REST}
    rest = next((part for part, ids in lists.items() if ids == REST), None)
    by_id = {case.case_id: case for case in cohort.cases}
    chosen: dict[str, str] = {}
    absent = []
    for part, ids in named.items():
        for wanted in ids:
            case_id = _find(wanted, by_id)
            if case_id is None:
                absent.append(wanted)
            else:
                chosen[case_id] = part
    if absent:
        raise UserError(
            f"{len(absent)} case(s) of the split `{content.get('name', split)}` are not in the "
            f"cohort: {listed(absent)}",
            where=cohort.source,
            remedy="the cohort must be the one the split was made for, under its names",
            code="split",
        )
    cases = []
    for case in cohort.cases:
        is_labelled = case.label is not None or bool(case.targets)
        wanted_part = chosen.get(case.case_id, rest if is_labelled else None)
        if wanted_part is not None:
            cases.append(_in_part(case, wanted_part))
    name = str(content.get("name", Path(split).stem))
    remarks = list(cohort.remarks)
    if len(cases) < len(cohort.cases):
        remarks.append(f"{len(cohort.cases) - len(cases)} case(s) are in no list and left out")
    return replace(
        cohort, cases=tuple(cases), has_validation=True, remarks=tuple(remarks), split=name
    )


def hash_ids(cohort: Cohort) -> Cohort:
    """The cohort under names that tell nothing: 12 digits of a hash of each id."""
    cases = tuple(
        replace(case, case_id=hashed(case.case_id), subject_id=hashed(case.subject_id))
        for case in cohort.cases
    )
    return replace(cohort, cases=cases)


def without_class(cohort: Cohort, value: int) -> Cohort:
    """The cohort with voxels of this value left out of loss and metrics instead of being a class.

    Raises:
        ConfigError: the source itself names another value to ignore.
    """
    table = cohort.classes
    if table is None:
        return cohort
    if table.ignore_value not in (None, value):
        raise ConfigError(
            f"`prepare.ignore_label` is {value}, the source itself ignores {table.ignore_value}",
            remedy="leave the setting out, or join the two values in the label files",
            code="ignore-label",
        )
    names = dict(zip(table.values, table.names, strict=True))
    names.pop(value, None)
    colours = dict(zip(table.values, table.colours, strict=True))
    return replace(cohort, classes=ClassTable.from_values(names, names, value, colours))


def hashed(name: str) -> str:
    """12 hexadecimal digits of SHA-256."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _in_part(case: Case, part: str) -> Case:
    if part == "validation":
        return replace(case, part="validation")
    return replace(case, part="test" if part == "test" else "training")


def _find(wanted: str, case_ids: Iterable[str]) -> str | None:
    if wanted in case_ids:
        return wanted
    if not wanted.isdigit():
        return None
    found = [case_id for case_id in case_ids if re.search(rf"(?<!\d){wanted}$", case_id)]
    return found[0] if len(found) == 1 else None


def _located(split: Path | str) -> Path:
    path = Path(split)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in (shipped_folder() / "splits").glob("*.json")}
    if str(split) not in shipped:
        raise ConfigError(
            f"there is no split `{split}`",
            remedy=f"give a JSON file, or one of {', '.join(sorted(shipped))}",
            code="no-split",
        )
    return shipped[str(split)]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_document(path)
    except (OSError, DocumentError) as error:
        raise ConfigError(f"`{path}` cannot be read as a split file ({error})") from None
    parts = ("training", "validation", "test")
    lists = [content.get(part) for part in parts] if isinstance(content, dict) else []
    found = [ids for ids in lists if ids is not None]
    good = all(
        ids == REST or (isinstance(ids, list) and all(isinstance(i, str) for i in ids))
        for ids in found
    )
    if not good or not found or found.count(REST) > 1:
        raise ConfigError(
            f"`{path.name}` is not a split file",
            remedy='`{"training": [case ids], "validation": [case ids]}`; one may be "rest"',
        )
    ids = [i for part in found if part != REST for i in part]
    if len(set(ids)) < len(ids):
        raise ConfigError(f"`{path.name}` lists a case twice")
    return dict(content)
