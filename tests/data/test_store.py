"""The store: what is read is what was written, and nothing else is ever read."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from mim3d.data.classes import ClassTable
from mim3d.data.intensity import Normalisation
from mim3d.data.store import FORMAT, PreparedCase, Store, file_name, quantise, write_case
from mim3d.data.store.layout import case_path
from mim3d.data.store.writing import draw_label_voxels, draw_voxels
from mim3d.foundation.digests import file_digest
from mim3d.foundation.errors import UserError

SHAPE = (37, 71, 33)  # more than one chunk of 32 along each axis, and no multiple of it
AFFINE = np.array([[0, -1.2, 0, 5], [0.8, 0, 0, -3], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])
CLASSES = ClassTable.from_values([0, 1, 4, 9])


def _voxels(channels: int = 2) -> np.ndarray:
    random = np.random.default_rng(0)
    place = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    return np.stack([place * (c + 1) % 4001 - 1000 + random.integers(0, 9, SHAPE)
                     for c in range(channels)]).astype(np.int16)  # fmt: skip


def _labels(classes: int = 4) -> np.ndarray:
    x, y, z = np.indices(SHAPE)
    return ((x // 9 + y // 11 + z // 7) % classes).astype(np.uint8)


def _case(case_id: str = "a", *, class_values=CLASSES.values, labels=None) -> PreparedCase:
    return PreparedCase(
        case_id,
        _voxels(),
        (1.0, 0.25),
        (0.0, -30.0),
        AFFINE,
        (Normalisation("window", -100, 300, air=-50.0), Normalisation("zscore", -9, 9, 1.5, 2.0)),
        labels,
        None if labels is None else class_values,
        draw_voxels(_voxels()[0] > 2000, case_id, "body"),
    )


def _entry(written: dict, path: Path) -> dict:
    return {
        "case_id": written["case_id"],
        "subject_id": "s",
        "part": "training",
        "shape": written["shape"],
        "spacing_mm": written["spacing_mm"],
        "has_label": written["class_values"] is not None,
        "image_key": "image",
        "key": written["key"],
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "targets": {},
    }


def _finish(folder: Path, *written: dict) -> Store:
    entries = [_entry(each, case_path(folder, each["case_id"])) for each in written]
    manifest = {"format": FORMAT, "name": "n", "classes": CLASSES.as_json(), "cases": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Store(folder)


def _store(folder: Path, *cases: PreparedCase, compression="blosc") -> Store:
    return _finish(folder, *(write_case(folder, case, {}, "key", compression) for case in cases))


@pytest.mark.parametrize("compression", ["blosc", "lzf"])
def test_any_box_is_read_as_it_was_written(tmp_path, compression):
    case = _case(labels=_labels())
    opened = _store(tmp_path, case, compression=compression).open("a")
    random = np.random.default_rng(1)

    for _ in range(30):
        start = tuple(int(random.integers(0, n)) for n in SHAPE)
        size = tuple(int(random.integers(1, n - s + 1)) for n, s in zip(SHAPE, start, strict=True))
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))

        voxels, labels = opened.read(start, size)

        assert (voxels == case.voxels[(slice(None), *box)]).all()
        assert (labels == case.labels[box]).all()
    assert opened.read((0, 0, 0), (2, 2, 2), labels=False)[1] is None


def test_a_case_carries_its_geometry_and_normalisation(tmp_path):
    case = _case(labels=_labels())
    with _store(tmp_path, case).open("a") as opened:
        assert opened.shape == (2, *SHAPE)
        assert opened.spacing_mm == pytest.approx((0.8, 1.2, 2.5))
        assert (opened.affine == AFFINE).all()
        assert opened.normalisation == case.normalisation
        own = opened.read_intensities((3, 4, 5), (6, 7, 8))
        normalised = opened.read_normalised((3, 4, 5), (6, 7, 8))

    box = np.s_[3:9, 4:11, 5:13]
    assert (own[0] == case.voxels[0][box]).all()
    assert (own[1] == case.voxels[1][box] * 0.25 - 30).all()
    assert normalised[0] == pytest.approx((own[0].clip(-100, 300) + 100) / 400)
    assert normalised[1] == pytest.approx((own[1].clip(-9, 9) - 1.5) / 2)


@pytest.mark.parametrize(
    ("start", "size"),
    [((-1, 0, 0), (3, 3, 3)), ((0, 0, 30), (3, 3, 4)), ((0, 0, 0), (0, 3, 3))],
)
def test_a_box_beyond_the_volume_is_a_programming_error(tmp_path, start, size):
    with pytest.raises(ValueError, match="does not lie within"):
        _store(tmp_path, _case()).open("a").read(start, size)


def test_classes_that_a_case_lacks_do_not_shift_the_others(tmp_path):
    """A case counts its own values 0, 9; the store's table is 0, 1, 4, 9."""
    labels = _labels(2)
    store = _store(tmp_path, _case(class_values=(0, 9), labels=labels))
    opened = store.open("a")

    read = opened.read((0, 0, 0), SHAPE)[1]

    assert (read == np.where(labels == 1, 3, 0)).all()
    assert opened.classes_present() == (0, 3)
    assert len(opened.label_voxels(1)) == 0
    assert all(labels[tuple(place)] == 1 for place in opened.label_voxels(3))


def test_drawn_voxels_are_of_their_class_spread_out_and_repeatable(tmp_path):
    labels = _labels()
    labels[labels == 3] = 0
    labels[5, 6, 7] = 3

    parts = draw_label_voxels(labels, CLASSES.values, "a")
    opened = _store(tmp_path, _case(labels=labels)).open("a")

    for index, part in enumerate(parts):
        assert (labels[tuple(part.T.astype(int))] == index).all()
        assert (opened.label_voxels(index) == part).all()
        assert len(np.unique(part, axis=0)) == len(part) == min(2000, (labels == index).sum())
    assert parts[3].tolist() == [[5, 6, 7]]
    assert (np.ptp(parts[1], axis=0) > np.array(SHAPE) * 0.8).all()
    body = _voxels()[0] > 2000
    assert all(body[tuple(place)] for place in opened.body_voxels)


def test_the_same_case_gives_the_same_bytes(tmp_path):
    case = _case(labels=_labels())
    write_case(tmp_path / "1", case, {}, "key", "blosc")
    write_case(tmp_path / "2", case, {}, "key", "blosc")

    one, two = (case_path(tmp_path / n, "a").read_bytes() for n in "12")
    assert one == two


def _read_all(store: Store) -> int:
    voxels, _ = store.open("a").read((0, 0, 0), SHAPE)
    return int(voxels.astype(np.int64).sum())


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_store_and_an_open_case_work_in_other_processes(tmp_path, method):
    store = _store(tmp_path, _case(labels=_labels()))
    opened = store.open("a")
    opened.read((0, 0, 0), (1, 1, 1))

    with multiprocessing.get_context(method).Pool(1) as pool:
        total = pool.apply(_read_all, (store,))
        here = pool.apply(opened.read, ((3, 2, 1), (4, 5, 6)))

    assert total == _voxels().astype(np.int64).sum()
    assert (here[0] == opened.read((3, 2, 1), (4, 5, 6))[0]).all()
    again = pickle.loads(pickle.dumps(opened))
    assert (again.read((3, 2, 1), (4, 5, 6))[0] == here[0]).all()


# Quantisation


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-1000, 3000, np.int16), (0, 65535, np.uint16), (-70000, -5000, np.int32), (0, 255, np.uint8),
     (-32768, 32767, np.float32), (100_000, 165_535, np.float64)],
)  # fmt: skip
def test_integers_are_stored_exactly(low, high, dtype):
    values = np.linspace(low, high, 11 * 13 * 7).round().astype(dtype).reshape(11, 13, 7)

    stored, scale, offset, error = quantise(values)

    assert stored.dtype == np.int16
    assert error == 0
    assert (stored.astype(np.float64) * scale + offset == values).all()


def test_integers_that_fit_keep_their_numbers():
    values = np.array([[[-1000, 3071]]], np.int16)

    assert quantise(values)[0].tolist() == values.tolist()


@pytest.mark.parametrize("factor", [1e-6, 0.37, 1e5])
def test_fractions_are_stored_within_half_a_step_of_their_range(factor):
    values = factor * np.random.default_rng(0).standard_normal((11, 13, 7)).astype(np.float32)

    stored, scale, offset, error = quantise(values)

    back = stored.astype(np.float64) * scale + offset
    assert np.abs(back - values).max() <= error * 1.001
    assert error == pytest.approx(np.ptp(values.astype(np.float64)) / 65535 / 2)
    assert stored.min() == -32768
    assert stored.max() == 32767


# Names


@pytest.mark.parametrize(
    "case_id",
    ["../../etc/passwd", "/abs", "..", ".", ".hidden", "a b", "nul\0l", "naïve/ü", "%41", "x" * 300,
     "x" * 299 + "y", "\udcff", "CON", "a\nb", "-rf", "~", "*?"],
)  # fmt: skip
def test_hostile_ids_become_names_within_the_store(tmp_path, case_id):
    name = file_name(case_id)

    path = case_path(tmp_path, case_id)
    assert path.parent == tmp_path / "cases"
    assert path.resolve().parent == (tmp_path / "cases").resolve()
    assert len(name.encode()) <= 129
    assert not name.startswith(".")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.%")


def test_two_ids_never_share_a_name():
    ids = ["a/b", "a%2Fb", "a_b", "A/b", ".a", "%2Ea", "x" * 121, "x" * 122, "x" * 120 + "-"]

    assert len({file_name(each) for each in ids}) == len(ids)


# Refusals


def test_no_store_an_unfinished_one_and_one_of_another_version_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="not a store, or its preparation has not finished"):
        Store(tmp_path)

    (tmp_path / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="format 2, this version reads format 1") as caught:
        Store(tmp_path)
    assert "mim3d prepare" in caught.value.remedy

    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Store(tmp_path)


def _tampered(folder: Path, change) -> Store:
    """A store whose file was changed and whose manifest agrees with it."""
    written = write_case(folder, _case(labels=_labels()), {}, "key", "blosc")
    with h5py.File(case_path(folder, "a"), "r+") as file:
        change(file, folder)
    return _finish(folder, written)


def _external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["voxels"] = _voxels()
    del file["voxels"]
    file["voxels"] = h5py.ExternalLink(str(folder / "other.h5"), "/voxels")


def _soft_link(file, folder):
    file.move("voxels", "labels2")
    file["voxels"] = h5py.SoftLink("/labels2")


def _soft_link_alone(file, folder):
    del file["body_voxels"]
    file["body_voxels"] = h5py.SoftLink("/label_voxels")


def _external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(2 * int(np.prod((2, *SHAPE)))))
    del file["voxels"]
    parts = [(str(folder / "secret"), 0, h5py.h5s.UNLIMITED)]
    file.create_dataset("voxels", (2, *SHAPE), "<i2", external=parts)


def _virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["v"] = _voxels()
    layout = h5py.VirtualLayout((2, *SHAPE), "<i2")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "v", (2, *SHAPE))
    del file["voxels"]
    file.create_virtual_dataset("voxels", layout)


def _objects(file, folder):
    del file["header"]
    file.create_dataset("header", data=np.array(["a", "b"], object), dtype=h5py.string_dtype())


def _references(file, folder):
    del file["labels"]
    file.create_dataset("labels", SHAPE, h5py.ref_dtype)


def _huge(file, folder):
    del file["body_voxels"]
    file.create_dataset("body_voxels", (2**40, 3), "<u2", chunks=(2**10, 3))


def _huge_voxels(file, folder):
    del file["voxels"]
    file.create_dataset("voxels", (2, 2**20, 2**20, 2**10), "<i2", chunks=(1, 32, 32, 32))


def _group(file, folder):
    del file["labels"]
    file.create_group("labels")


def _more(file, folder):
    file["more"] = 1


def _less(file, folder):
    del file["label_starts"]


def _gzip(file, folder):
    del file["labels"]
    file.create_dataset("labels", data=_labels(), compression="gzip")


def _one_chunk(file, folder):
    del file["labels"]
    file.create_dataset("labels", data=_labels(), chunks=SHAPE)


def _no_json(file, folder):
    del file["header"]
    file["header"] = np.frombuffer(b"{" * 1000, np.uint8)


def _other_key(file, folder):
    header = json.loads(file["header"][()].tobytes()) | {"key": "other"}
    del file["header"]
    file["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)


def _no_normalisation(file, folder):
    header = json.loads(file["header"][()].tobytes()) | {"normalisation": [{"kind": 1}]}
    del file["header"]
    file["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)


@pytest.mark.parametrize(
    "change",
    [_external_link, _soft_link, _soft_link_alone, _external_storage, _virtual, _objects,
     _references, _huge, _huge_voxels, _group, _more, _less, _gzip, _one_chunk, _no_json,
     _other_key, _no_normalisation],
)  # fmt: skip
def test_structure_that_a_store_never_writes_is_refused_unread(tmp_path, change):
    """Each was seen to be read before its check existed."""
    store = _tampered(tmp_path, change)

    with pytest.raises(UserError, match="of the store cannot be used") as caught:
        store.open("a").read((0, 0, 0), (4, 4, 4))
    assert caught.value.code == "damaged-store"
    assert "mim3d prepare" in caught.value.remedy


def test_a_flipped_bit_is_found_before_a_voxel_is_handed_out(tmp_path):
    store = _store(tmp_path, _case(labels=_labels()))
    path = case_path(tmp_path, "a")
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 20).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)

        with pytest.raises(UserError, match="its checksum is wrong"):
            Store(tmp_path).open("a").read((0, 0, 0), SHAPE)
        assert Store(tmp_path).verify() == {"a": "its checksum is wrong"}
    path.write_bytes(whole)
    assert store.verify() == {}


def test_damage_found_late_is_an_error_or_leaves_the_voxels_equal(tmp_path):
    """Without comparing checksums, HDF5's own checks must end in a sentence, never a signal."""
    _store(tmp_path, _case(labels=_labels()))
    path = case_path(tmp_path, "a")
    whole = path.read_bytes()
    outcomes = set()
    for place in np.random.default_rng(1).integers(0, min(len(whole), 3000), 60).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        try:
            Store(tmp_path).open("a", verify=False).read((0, 0, 0), (8, 8, 8))
            outcomes.add("read")
        except UserError as error:
            assert error.code == "damaged-store"
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize("change", ["missing", "short", "link"])
def test_a_file_that_is_not_the_manifests_is_refused(tmp_path, change):
    store = _store(tmp_path, _case())
    path = case_path(tmp_path, "a")
    if change == "missing":
        path.unlink()
    elif change == "short":
        os.truncate(path, 1000)
    else:
        path.rename(tmp_path / "b.h5")
        path.symlink_to(tmp_path / "b.h5")

    with pytest.raises(UserError, match="of the store cannot be used"):
        store.open("a").read((0, 0, 0), (1, 1, 1))


def test_a_case_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no case `b`"):
        _store(tmp_path, _case()).open("b")


@pytest.mark.real_data
def test_hostile_files_of_the_zoo_are_refused(tmp_path, shared):
    traps = sorted((shared / "zoo" / "traps").glob("*.h5"))
    assert traps
    written = write_case(tmp_path, _case(labels=_labels()), {}, "key", "blosc")
    for trap in traps:
        case_path(tmp_path, "a").write_bytes(trap.read_bytes())
        store = _finish(tmp_path, written)

        with pytest.raises(UserError, match="of the store cannot be used"):
            store.open("a").read((0, 0, 0), (1, 1, 1))
