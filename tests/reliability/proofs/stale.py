"""Row 22: a case is prepared anew exactly when its content or its preparation changed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.prepare import PreparationResult, prepare_store
from mim3d.data.store import Store
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from tests.reliability.proof import Tally, proof
from tests.reliability.workbench import make_source

CASES = 3
CONTENT: tuple[dict[str, Any], ...] = (
    {"spacing_mm": (2.0, 2.0, 2.5)}, {"window_hu": (-400.0, 500.0)}, {"modality": "mr"},
    {"crop_to_body": False}, {"body_margin_mm": 0.0}, {"filter": "lzf"}, {"align_channels": True},
    {"trust_image_grid": True}, {"clip_percentiles": (1.0, 99.0)}, {"interpolation": "cubic"},
)  # fmt: skip
"""Settings that decide what a case becomes."""
FORM: tuple[dict[str, Any], ...] = (
    {"workers": 1}, {"keep_paths": True}, {"validation_fraction": 0.4}, {"verify": True},
)  # fmt: skip
"""Settings that do not."""

Change = tuple[str, set[str], dict[str, Any], ReadConfig]
"""What was done, which cases are to be made anew, and the settings from now on."""


@proof(rows=(22,), trials="changes of sources and settings", quick=10, full=200, stretch=100)
def stale_stores(trials: range, seed: int, folder: Path) -> Tally:
    """After any change a store equals a fresh one, and only what changed is made anew."""
    tally = Tally()
    kinds = list(_kinds())
    source = make_source(folder / "source", CASES)
    _prepare(source, folder / "store", {}, ReadConfig())
    for trial in trials:
        random = generator(seed, trial, "stale")
        place = folder / str(trial)
        shutil.copytree(folder / "store", place / "store")
        # Times are kept, as `cp -a` and `rsync -a` keep them; the time of change never is.
        shutil.copytree(source, place / "source", copy_function=shutil.copy2)
        _prepare(place / "source", place / "store", {}, ReadConfig())
        name, due, settings, read = kinds[trial % len(kinds)](place / "source", random)
        moved = place / "moved"
        there = moved if moved.is_dir() else place / "source"
        result = _prepare(there, place / "store", settings, read)
        tally.add(trial, name, _wrong(there, place, result, due, settings, read))
        shutil.rmtree(place)
    return tally


def _prepare(
    source: Path, out: Path, settings: dict[str, Any], read: ReadConfig
) -> PreparationResult:
    wanted = PreparationConfig(**{"workers": 0, "modality": "ct", **settings})
    return prepare_store(source, out, PrepareConfig(prepare=wanted, read=read))


def _wrong(
    source: Path,
    place: Path,
    result: PreparationResult,
    due: set[str],
    settings: dict[str, Any],
    read: ReadConfig,
) -> str | None:
    if set(result.prepared) != due:
        return f"made anew were {sorted(result.prepared)}, due were {sorted(due)}"
    fresh = _prepare(source, place / "fresh", settings, read)
    found, wanted = Store(result.store), Store(fresh.store)
    if found.cases != wanted.cases or found.verify():
        return f"it holds {found.cases}, a fresh one {wanted.cases}; damaged: {found.verify()}"
    for case_id in wanted.cases:
        one, other = (s.path / "cases" / f"{case_id}.h5" for s in (found, wanted))
        if one.read_bytes() != other.read_bytes():
            return f"`{case_id}` is stale"
    lists = [{k: s.manifest[k] for k in ("cases", "classes", "preparation")}
             for s in (found, wanted)]  # fmt: skip
    return None if lists[0] == lists[1] else "its manifest is not that of a fresh one"


def _kinds() -> Iterator[Callable[[Path, np.random.Generator], Change]]:
    yield _damaged_manifest
    yield _vanished_and_back
    yield _voxel
    yield _voxel_with_the_old_time
    yield _label_voxel
    yield _other_file_under_the_name
    yield _time_only
    yield _compressed_anew
    yield _order_of_the_list
    yield _folder_renamed
    yield _case_renamed
    yield _cases_swapped
    yield _setting_of_content
    yield _setting_of_form
    yield _geometry_rule
    yield _list_of_a_case
    yield _half_switched


def _case(source: Path, random: np.random.Generator) -> Path:
    files = sorted((source / "imagesTr").glob("*.nii.gz"))
    return files[int(random.integers(len(files)))]


def _id(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def _change_voxel(path: Path, random: np.random.Generator, *, step: int = 1) -> None:
    """Another value in one voxel."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    before = path.stat()
    place = int(random.integers(352, len(raw))) // 4 * 4
    raw[place] = (raw[place] + step) % 256
    path.write_bytes(gzip.compress(bytes(raw), mtime=0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def _voxel(source: Path, random: np.random.Generator) -> Change:
    path = _case(source, random)
    _change_voxel(path, random)
    return "a voxel changed", {_id(path)}, {}, ReadConfig()


def _voxel_with_the_old_time(source: Path, random: np.random.Generator) -> Change:
    path = _case(source, random)
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw = bytearray(gzip.decompress(bytes(raw)))
    raw[-1 - 4 * int(random.integers(100))] ^= 1 << int(random.integers(2))
    new = gzip.compress(bytes(raw), 9, mtime=0)
    path.write_bytes(new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return "a voxel changed, its time set back", {_id(path)}, {}, ReadConfig()


def _label_voxel(source: Path, random: np.random.Generator) -> Change:
    path = _case(source, random)
    label = source / "labelsTr" / path.name
    raw = bytearray(gzip.decompress(label.read_bytes()))
    present = [place for place in range(352, len(raw)) if raw[place] == 1]
    raw[present[int(random.integers(len(present)))]] = 0
    label.write_bytes(gzip.compress(bytes(raw), mtime=0))
    return "a label changed", {_id(path)}, {}, ReadConfig()


def _other_file_under_the_name(source: Path, random: np.random.Generator) -> Change:
    path = _case(source, random)
    before = path.stat()
    other = path.with_name("new")
    shutil.copy2(path, other)
    _change_voxel(other, random, step=3)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    return "another file renamed over it", {_id(path)}, {}, ReadConfig()


def _time_only(source: Path, random: np.random.Generator) -> Change:
    for path in sorted(source.rglob("*.nii.gz")):
        if random.random() < 0.7:
            os.utime(path, ns=(1, int(random.integers(2**60))))
    return "times changed alone", set(), {}, ReadConfig()


def _compressed_anew(source: Path, random: np.random.Generator) -> Change:
    path = _case(source, random)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))
    return "compressed anew: other bytes", {_id(path)}, {}, ReadConfig()


def _order_of_the_list(source: Path, random: np.random.Generator) -> Change:
    listed = json.loads((source / "dataset.json").read_text())
    random.shuffle(listed["training"])
    (source / "dataset.json").write_text(json.dumps(dict(reversed(listed.items()))))
    return "list in another order", set(), {}, ReadConfig()


def _folder_renamed(source: Path, random: np.random.Generator) -> Change:
    source.rename(source.with_name("moved"))
    return "folder renamed", set(), {}, ReadConfig()


def _case_renamed(source: Path, random: np.random.Generator) -> Change:
    path = _case(source, random)
    text = (source / "dataset.json").read_text().replace(_id(path), "renamed")
    (source / "dataset.json").write_text(text)
    for folder in ("imagesTr", "labelsTr"):
        (source / folder / path.name).rename(source / folder / "renamed.nii.gz")
    return "case renamed: a new case", {"renamed"}, {}, ReadConfig()


def _cases_swapped(source: Path, random: np.random.Generator) -> Change:
    one, other = sorted((source / "imagesTr").glob("*.nii.gz"))[:2]
    for folder in ("imagesTr", "labelsTr"):
        first, second = source / folder / one.name, source / folder / other.name
        first.rename(first.with_name("aside"))
        second.rename(first)
        first.with_name("aside").rename(second)
    return "two cases swapped their files", {_id(one), _id(other)}, {}, ReadConfig()


def _all(source: Path) -> set[str]:
    return {_id(path) for path in source.glob("images*/*.nii.gz")}


def _setting_of_content(source: Path, random: np.random.Generator) -> Change:
    setting = CONTENT[int(random.integers(len(CONTENT)))]
    return f"setting `{next(iter(setting))}`", _all(source), setting, ReadConfig()


def _setting_of_form(source: Path, random: np.random.Generator) -> Change:
    setting = FORM[int(random.integers(len(FORM)))]
    return f"setting `{next(iter(setting))}`", set(), setting, ReadConfig()


def _geometry_rule(source: Path, random: np.random.Generator) -> Change:
    rule = ReadConfig(geometry="sform")
    return "setting `read.geometry`", _all(source), {}, rule


def _list_of_a_case(source: Path, random: np.random.Generator) -> Change:
    listed = json.loads((source / "dataset.json").read_text())
    listed["validation"].append(listed["training"].pop())
    (source / "dataset.json").write_text(json.dumps(listed))
    return "a case moved to another list", set(), {}, ReadConfig()


def _half_switched(source: Path, random: np.random.Generator) -> Change:
    """Other settings, killed between voxels and sidecar of a case; then the old settings again."""
    path, store = _case(source, random), source.with_name("store")
    other = source.with_name("other")
    _prepare(source, other, {"window_hu": (-900.0, 500.0)}, ReadConfig())
    _prepare(source, store, {"window_hu": (-800.0, 500.0)}, ReadConfig())
    shutil.copy2(other / "cases" / f"{_id(path)}.h5", store / "cases")
    back = {"window_hu": (-800.0, 500.0)}
    return "switched half and back", {_id(path)}, back, ReadConfig()


def _damaged_manifest(source: Path, random: np.random.Generator) -> Change:
    """The modality was found by the values: the manifest that says so cannot be read any more."""
    store, settings = source.with_name("store"), {"modality": "auto"}
    _prepare(source, store, settings, ReadConfig())
    path = store / "manifest.json"
    raw = bytearray(path.read_bytes())
    kind = int(random.integers(3))
    if kind == 0:
        raw = raw[: int(random.integers(len(raw)))]
    elif kind == 1:
        raw[int(random.integers(len(raw)))] ^= 1 << int(random.integers(7))
    else:
        raw = raw.replace(b'"format": 1', b'"format": %d' % random.integers(2, 99), 1)
    path.write_bytes(raw)
    said = ("cut", "flipped", "of a later format")[kind]
    return f"manifest {said}", set(), settings, ReadConfig()


def _vanished_and_back(source: Path, random: np.random.Generator) -> Change:
    """Images or labels are gone while it is prepared, one, some or all, and then there again."""
    store = source.with_name("store")
    voxels = {path.name: path.read_bytes() for path in store.glob("cases/*.h5")}
    files = sorted(source.rglob("*.nii.gz"))
    gone = [path for path in files if random.random() < (0.2, 0.6, 1.0)[int(random.integers(3))]]
    for number, path in enumerate(gone):
        path.rename(source.with_name(f"away-{number}"))
    try:
        refused = {row.code for row in _prepare(source, store, {}, ReadConfig()).refused}
        assert refused == ({"missing-file"} if gone else set())
    except UserError as error:
        assert error.code == "missing-source", error
    assert voxels == {path.name: path.read_bytes() for path in store.glob("cases/*.h5")}
    assert len(Store(store).cases) == len(voxels)
    for number, path in enumerate(gone):
        source.with_name(f"away-{number}").rename(path)
    return "files gone and there again", set(), {}, ReadConfig()
