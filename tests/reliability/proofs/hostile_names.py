"""Row 31: names, links and references that would lead out of the folders a command was given."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mim3d.data.cohort import read_cohort
from mim3d.data.files import read_label, read_volume
from mim3d.data.store.layout import MAX_NAME, file_name
from mim3d.foundation.errors import ExitCode, UserError
from mim3d.foundation.randomness import generator
from tests.reliability.child import judged
from tests.reliability.proof import Tally, proof
from tests.reliability.workbench import attempt, make_segmenter

Random = np.random.Generator
NAMES = (
    "-rf", "--out=x", "~", "~root", "$(touch escaped)", "`touch escaped`", "a;touch escaped", "a&b",
    "a|b", "a>escaped", "a b", " a", "a ", "a\nb", "a\tb", "a\rb", "\x1b[2J", "\u202egz.iin", "CON",
    "NUL", "com1", "e\u0301", "\u00e9", "\u4f53\u79ef", "\udcff\udcfe", "n" * 230, "\u4f53" * 78,
    "%2e%2e%2fescaped", "%s%n%d", "{0}", "{x.__class__}", "*", "[1]", "?", "..a", "a..", "...",
    "a..b", "a.nii.gz", "a.1.2", "'", '"', "\\", "..\\..\\escaped", "$HOME", "#", "!",
    "manifest.json",
    "last", ".h5",
)  # fmt: skip
IDS = (
    "../escaped", "../../escaped", "/tmp/../escaped", "..", ".", "a/b", "a/../../escaped", "./a",
    "sub/../../../escaped", "C:\\escaped", "\\\\host\\escaped", "~/escaped", "a/", "//escaped",
    "cases/../../escaped", "\u2025/escaped", "..%2fescaped", "escaped\x00.gz", *NAMES,
)  # fmt: skip
"""What a table may call a case: any text, also paths."""
SECONDS = 60.0


@proof(rows=(31,), trials="hostile names of cases and files, each given to every command",
       quick=2, full=140, stretch=20)  # fmt: skip
def hostile_names(trials: range, seed: int, folder: Path) -> Tally:
    """Whatever a case is called, nothing is written outside of the folder named by `--out`."""
    make_segmenter(folder)

    def judge(trial: int) -> str:
        place = folder / "places" / str(trial) / "outer" / "work"
        place.mkdir(parents=True)
        if trial % 2:
            source, name = _table(place, IDS[trial // 2 % len(IDS)])
        else:
            source, name = _files(place, NAMES[trial // 2 % len(NAMES)])
        outcome = _commands(place, source, folder / "run", name)
        shutil.rmtree(folder / "places" / str(trial))
        return outcome

    tally = Tally()
    for trial, result in zip(trials, judged(trials, judge, seconds=SECONDS, spare_bytes=None),
                             strict=True):  # fmt: skip
        tally.add(trial, result.outcome or "broken", result.fault)
    return tally


@proof(rows=(31,), trials="links and references out of a source", quick=40, full=400, stretch=200)
def leading_out(trials: range, seed: int, folder: Path) -> Tally:
    """No file outside of a source is read through a link, a pair or the name in a header."""
    tally = Tally()
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.raw").write_bytes(bytes(range(256)) * 2)
    _nifti(outside / "secret.nii")
    for trial in trials:
        random = generator(seed, trial, "leading out")
        place = folder / str(trial)
        place.mkdir()
        kind = list(WAYS_OUT)[trial % len(WAYS_OUT)]
        path = WAYS_OUT[kind](random, place, outside)
        broken = None
        for read in (_as_file, _as_source):
            try:
                voxels = read(path, place)
            except UserError:
                continue
            if voxels is not None:
                broken = f"{kind}: {read.__name__} read {voxels} voxels"
        tally.add(trial, f"{kind}: refused", broken)
    return tally


@proof(rows=(31,), trials="pairs of case ids", quick=300, full=20_000, stretch=5000)
def safe_names(trials: range, seed: int, folder: Path) -> Tally:
    """Every case id becomes a plain name of at most 129 bytes, and two ids never one name."""
    tally = Tally()
    letters = ["a", "A", ".", "/", "\\", "%", "2", "E", "e", "-", "_", " ", "\n", "\x00", "\u00e9",
               "\u4f53", "\udcff", ":", "~", "0", "F", "..", "%2E", "%2F"]  # fmt: skip
    for trial in trials:
        random = generator(seed, trial, "ids")
        count = int(random.choice([1, 2, 3, 8, 60, 200]))
        chosen = [letters[place] for place in random.integers(len(letters), size=count + 1)]
        one, place = "".join(chosen[:-1]), int(random.integers(count))
        other = "".join([*chosen[:place], chosen[-1], *chosen[place + 1 : -1]])
        is_safe = all(map(_is_plain, (file_name(one), file_name(other))))
        is_safe = is_safe and (one == other or file_name(one) != file_name(other))
        tally.add(trial, "plain and distinct", None if is_safe else f"{one!r} {other!r}")
    return tally


def _is_plain(name: str) -> bool:
    """Whether a name is none of another folder, hidden, of control characters or too long."""
    is_word = name.isascii() and name.isprintable() and not set(name) & set("/\\")
    return is_word and 0 < len(name) <= MAX_NAME + 9 and name[0] != "."


def _commands(place: Path, source: Path, run: Path, name: str) -> str:
    """All commands on the source, from an inner folder; says how many took it."""
    before = _snapshot(place.parents[1])
    inner = place / "inner"
    inner.mkdir()
    os.chdir(inner)
    out = {verb: place / "out" / verb for verb in ("prepare", "predict", "evaluate", "convert")}
    labels = source.parent / "labels" if source.is_file() else source
    # The results lie in a folder of their own: evaluate writes beside them.
    out["evaluate"].mkdir(parents=True)
    arguments = {
        "prepare": [str(source), "--out", str(out["prepare"]), "--workers", "0"],
        "predict": [str(run), str(source), "--out", str(out["predict"]), "--device", "cpu"],
        "evaluate": [str(labels), str(labels), "--out", str(out["evaluate"] / "results.json"),
                     "--images", str(labels)],
        "convert": [str(run / "checkpoints/last/weights.safetensors"), "--out",
                    str(out["convert"] / f"{_as_file_name(name)}.safetensors")],
    }  # fmt: skip
    taken = []
    for verb, words in arguments.items():
        code, said = attempt([verb, *words])
        if code == ExitCode.BUG:
            raise AssertionError(f"{verb} of {name!r}: {said[-400:]}")
        taken.append(f"{verb} {code}")
    now = {path: digest for path, digest in _snapshot(place.parents[1]).items()
           if not path.startswith(str(place / "out"))}  # fmt: skip
    if now != before or any(inner.iterdir()):
        changed = sorted(set(now.items()) ^ set(before.items()))
        raise AssertionError(f"{name!r}: changed outside of --out: {changed[:4]}")
    return ", ".join(taken)


def _snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder by its digest, links by their target."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _as_file_name(name: str) -> str:
    return name.replace("/", "_").replace("\x00", "_")[:60]


def _files(place: Path, name: str) -> tuple[Path, str]:
    """A folder with one volume of that name, which serves as its own label map."""
    source = place / "source"
    source.mkdir()
    _nifti(source / "plain.nii")
    _nifti(source / f"{name.encode('utf-8', 'surrogateescape').decode('utf-8', 'ignore')[:240]}.nii"
           if len(os.fsencode(name)) > 250 else source / f"{name}.nii")  # fmt: skip
    return source, name


def _table(place: Path, case_id: str) -> tuple[Path, str]:
    """A table that calls a case so, and label maps under plain names."""
    source = place / "source"
    (source / "labels").mkdir(parents=True)
    _nifti(source / "a.nii")
    _nifti(source / "labels" / "a.nii")
    rows = [("case", "image", "label", "subject"), (case_id, "a.nii", "labels/a.nii", case_id)]
    with open(source / "cases.csv", "w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows(rows)
    return source / "cases.csv", case_id


def _nifti(path: Path, data: bytes | None = None) -> None:
    """A small NIfTI of whole numbers: 9 x 8 x 7, as image or label map."""
    import nibabel

    voxels = np.zeros((9, 8, 7), np.uint8)
    voxels[2:6, 2:6, 2:5] = 1
    voxels[3, 4, 2] = 2
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 1.5, 2.0, 1.0]))
    with open(path, "wb") as file:
        file.write(image.to_bytes() if data is None else data)


def _as_file(path: Path, place: Path) -> int | None:
    if path.is_symlink() and not path.is_dir():
        return None  # a link that a person names is theirs
    return read_volume(path).voxels.size


def _as_source(path: Path, place: Path) -> int:
    return sum(read_volume(image).voxels.size + (0 if case.label is None else
               read_label(case.label).voxels.size)
               for case in read_cohort(place).cases for image in case.images)  # fmt: skip


def _target(random: Random, outside: Path) -> str:
    back = "../" * int(random.integers(1, 12)) + "etc/hostname"
    places = [str(outside / "secret.raw"), "../outside/secret.raw", "/etc/hostname", "/dev/zero",
              "/proc/self/environ", "~/.netrc", "file:///etc/hostname", "./../outside/secret.raw",
              "a/../../outside/secret.raw", back, "../outside/secret.raw\x00.raw"]  # fmt: skip
    return places[int(random.integers(len(places)))]


def _meta_image(random: Random, place: Path, outside: Path) -> Path:
    path = place / "scan.mhd"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\n"
        f"ElementSpacing = 1 1 1\nElementDataFile = {_target(random, outside)}\n"
    )
    return path


def _nrrd(random: Random, place: Path, outside: Path) -> Path:
    path = place / "scan.nhdr"
    path.write_text(
        "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\nspace: LPS\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
        f"data file: {_target(random, outside)}\n"
    )
    return path


def _neighbour_link(random: Random, place: Path, outside: Path) -> Path:
    """A header whose data file is a neighbour by name and lies elsewhere by a link."""
    path = _meta_image(random, place, outside)
    text = path.read_text().rpartition("ElementDataFile")[0]
    path.write_text(f"{text}ElementDataFile = data.raw\n")
    (place / "data.raw").symlink_to(outside / "secret.raw")
    return path


def _linked_file(random: Random, place: Path, outside: Path) -> Path:
    path = place / "scan.nii"
    relative = os.path.relpath(outside / "secret.nii", place)
    path.symlink_to(relative if random.random() < 0.5 else outside / "secret.nii")
    return path


def _linked_folder(random: Random, place: Path, outside: Path) -> Path:
    path = place / "scans"
    path.symlink_to(outside, target_is_directory=True)
    return path


def _linked_images(random: Random, place: Path, outside: Path) -> Path:
    """`imagesTr` as a link out of the cohort."""
    path = place / "imagesTr"
    path.symlink_to(outside, target_is_directory=True)
    (place / "labelsTr").mkdir()
    return path


def _listed_file(random: Random, place: Path, outside: Path) -> Path:
    path = place / "dataset.json"
    target = str(random.choice([str(outside / "secret.nii"), "../outside/secret.nii"]))
    path.write_text(f'{{"labels": {{"0": "b", "1": "o"}}, "training": [{{"image": "{target}"}}]}}')
    return path


def _linked_pair(random: Random, place: Path, outside: Path) -> Path:
    """The voxels of a pair as a link."""
    import nibabel

    voxels = np.ones((8, 8, 8), np.uint8)
    nibabel.save(nibabel.Nifti1Pair(voxels, np.eye(4)), place / "scan.hdr")
    (place / "scan.img").unlink()
    (place / "scan.img").symlink_to(outside / "secret.raw")
    return place / "scan.hdr"


WAYS_OUT: dict[str, Callable[[Random, Path, Path], Path]] = {
    "a MetaImage's data file": _meta_image,
    "an NRRD's data file": _nrrd,
    "a neighbour that is a link": _neighbour_link,
    "a linked file": _linked_file,
    "a linked folder": _linked_folder,
    "linked images": _linked_images,
    "a listed file": _listed_file,
    "a pair with a link": _linked_pair,
}
