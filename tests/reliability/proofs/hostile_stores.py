"""Row 33: HDF5 and safetensors with a structure that means harm, or with any byte changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mim3d.data.store import open_store
from mim3d.data.store.layout import MANIFEST, case_path, read_json, write_record
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from mim3d.models.weights import load_weights, save_weights
from tests.reliability.child import judged
from tests.reliability.proof import Tally, proof
from tests.reliability.small_store import make_store

Random = np.random.Generator
CASE = "case_0"
SECONDS, SPARE = 5.0, 256 << 20


@proof(rows=(33,), trials="mutated HDF5 files, each under a manifest that vouches for it",
       quick=60, full=4000, stretch=500)  # fmt: skip
def mutated_stores(trials: range, seed: int, folder: Path) -> Tally:
    """A case's file with any bytes changed gives a sentence or voxels; no signal, hang, memory."""
    store = make_store(folder)
    whole = case_path(store, CASE).read_bytes()
    truth = _read(store)

    def judge(trial: int) -> str:
        random = generator(seed, trial, "mutated store")
        path = case_path(store, CASE)
        path.write_bytes(mutated(random, whole))
        # The checksum alone finds it ...
        try:
            _read(store)
        except UserError:
            pass
        else:
            if path.read_bytes() != whole:
                raise AssertionError("a changed file was read under its old checksum")
        # ... and where the manifest vouches for it, the file's own structure is checked.
        with vouched(store):
            try:
                found = _read(store)
            except UserError:
                return "refused"
        return "equal voxels" if _same(found, truth) else "other voxels, as vouched for"

    return _tally(trials, judge)


@proof(rows=(33,), trials="HDF5 files with links, foreign storage, huge sets, other types",
       quick=24, full=400, stretch=100)  # fmt: skip
def hostile_sets(trials: range, seed: int, folder: Path) -> Tally:
    """A case's file that leads out of itself, or declares what it does not hold, is refused."""
    store = make_store(folder)
    whole = case_path(store, CASE).read_bytes()
    secret = folder / "secret.raw"
    secret.write_bytes(bytes(range(256)) * 64)

    def judge(trial: int) -> str:
        random = generator(seed, trial, "hostile set")
        path = case_path(store, CASE)
        path.write_bytes(whole)
        name = str(random.choice(["voxels", "labels", "body_voxels", "label_voxels", "header"]))
        kind = str(random.choice(list(HARMS)))
        with h5py.File(path, "r+") as file:
            HARMS[kind](file, name, secret)
        with vouched(store):
            try:
                _read(store)
            except UserError:
                return f"{kind}: refused"
        raise AssertionError(f"`{name}` with {kind} was read")

    return _tally(trials, judge)


@proof(rows=(33,), trials="mutated safetensors files", quick=300, full=6000, stretch=1000)
def mutated_weights(trials: range, seed: int, folder: Path) -> Tally:
    """A file of weights with any bytes changed gives a sentence, or tensors of the bytes it has."""
    path = folder / "weights.safetensors"
    tensors = {"encoder.a": torch.arange(6.0).view(2, 3), "b": torch.arange(4),
               "c": torch.ones(2).bfloat16(), "d": torch.tensor(True)}  # fmt: skip
    save_weights(path, tensors, {"encoder": '{"width": 24}'})
    whole = path.read_bytes()

    def judge(trial: int) -> str:
        random = generator(seed, trial, "mutated weights")
        content = mutated(random, whole) if trial % 2 else _lied(random, whole)
        path.write_bytes(content)
        try:
            found = load_weights(path).tensors
        except UserError:
            return "refused"
        held = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        if held != len(content) - 8 - struct.unpack("<Q", content[:8])[0]:
            raise AssertionError("tensors that are not the bytes of the file")
        return "read, as many bytes as there are"

    return _tally(trials, judge)


def _tally(trials: range, judge: Callable[[int], str]) -> Tally:
    tally = Tally()
    found = judged(trials, judge, seconds=SECONDS, spare_bytes=SPARE)
    for trial, result in zip(trials, found, strict=True):
        tally.add(trial, result.outcome or "broken", result.fault)
    return tally


class vouched:
    """While it lasts, the manifest gives a case's file the size and checksum that it has."""

    def __init__(self, store: Path) -> None:
        self.manifest = store / MANIFEST
        self.path = case_path(store, CASE)

    def __enter__(self) -> None:
        self.old = self.manifest.read_bytes()
        record = read_json(self.manifest)
        content = self.path.read_bytes()
        for entry in record["cases"]:
            if entry["case_id"] == CASE:
                entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_record(self.manifest, record)

    def __exit__(self, *error: object) -> None:
        self.manifest.write_bytes(self.old)


def _read(store: Path) -> list[np.ndarray[Any, Any]]:
    """Everything that training reads of a case."""
    with open_store(store).open(CASE) as case:
        voxels, labels = case.read((0, 0, 0), case.shape[1:])
        case.read_normalised((1, 2, 0), (5, 4, 3))
        parts = [case.label_voxels(index) for index in case.classes_present()]
        found = [voxels, case.body_voxels, case.affine, *parts]
        return [*found, labels] if labels is not None else found


def _same(found: list[np.ndarray[Any, Any]], truth: list[np.ndarray[Any, Any]]) -> bool:
    return len(found) == len(truth) and all(map(np.array_equal, found, truth))


def mutated(random: Random, whole: bytes) -> bytes:
    """The bytes with some changed, moved, cut out, put in or set to extremes."""
    content = bytearray(whole)
    for _ in range(int(random.integers(1, 6))):
        place = int(random.integers(len(content)))
        if random.random() < 0.5:
            place = min(place, int(random.integers(1, 4096)), len(content) - 1)
        count = int(random.integers(1, 17))
        match int(random.integers(7)):
            case 0:
                content[place] ^= 1 << int(random.integers(8))
            case 1:
                content[place] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
            case 2:
                content[place : place + 8] = struct.pack("<Q", EXTREMES[random.integers(5)])
            case 3:
                del content[place : place + count]
            case 4:
                content[place:place] = random.bytes(count)
            case 5:
                other = int(random.integers(len(content)))
                content[place : place + count] = content[other : other + count]
            case _:
                del content[max(place, 9) :]
        if len(content) < 16:
            break
    return bytes(content)


EXTREMES = (0, 1, 2**31 - 1, 2**63 - 1, 2**64 - 1)


def _lied(random: Random, whole: bytes) -> bytes:
    """Weights whose header is JSON and lies."""
    length = struct.unpack("<Q", whole[:8])[0]
    header: dict[str, Any] = json.loads(whole[8 : 8 + length])
    key = str(random.choice([name for name in header if name != "__metadata__"]))
    number = int(random.choice([0, -1, 1, 3, 2**31, 2**53])) * int(random.choice([1, 2**10]))
    entry = header[key]
    lies: list[Callable[[], Any]] = [
        lambda: entry.update(shape=[number]),
        lambda: entry.update(shape=[*entry["shape"], number]),
        lambda: entry.update(shape=[2**40, 2**40]),
        lambda: entry.update(data_offsets=[0, number]),
        lambda: entry.update(data_offsets=[number, entry["data_offsets"][1]]),
        lambda: entry.update(dtype=str(random.choice(["F64", "F8_E4M3", "I8", "", "\0", "C64"]))),
        lambda: entry.update(dtype=[["F32"]]),
        lambda: header.update({key: [[[[]]]]}),
        lambda: header.update({"x": entry}),
        lambda: header.update({"__metadata__": {"a": {"b": "c"}}}),
        lambda: header.update({"n": header}) if False else header.pop(key),
    ]
    lies[int(random.integers(len(lies)))]()
    raw = json.dumps(header).encode()
    if random.random() < 0.2:
        raw = b'{"a":' * int(random.integers(100, 30_000)) + raw
    return struct.pack("<Q", len(raw)) + raw + whole[8 + length :]


def _external_link(file: h5py.File, name: str, secret: Path) -> None:
    shutil.copy(file.filename, secret.with_suffix(".h5"))
    del file[name]
    file[name] = h5py.ExternalLink(str(secret.with_suffix(".h5")), f"/{name}")


def _soft_link(file: h5py.File, name: str, secret: Path) -> None:
    file.move(name, "moved")
    file[name] = h5py.SoftLink("/moved")


def _external_storage(file: h5py.File, name: str, secret: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    parts = [(str(secret), 0, h5py.h5s.UNLIMITED)]
    file.create_dataset(name, shape, kind, external=parts)


def _virtual(file: h5py.File, name: str, secret: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(str(secret), "d", shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def _group(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file.create_group(name)


def _objects(file: h5py.File, name: str, secret: Path) -> None:
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, h5py.string_dtype())


def _references(file: h5py.File, name: str, secret: Path) -> None:
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, h5py.ref_dtype)


def _huge(file: h5py.File, name: str, secret: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    side = 2 ** (48 // len(shape))
    file.create_dataset(name, (side,) * len(shape), kind, chunks=(1,) * len(shape))


def _huge_chunks(file: h5py.File, name: str, secret: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    limits = (None,) * len(shape)
    chunks = tuple(4096 if axis == 0 else 256 for axis in range(len(shape)))
    file.create_dataset(name, shape, kind, chunks=chunks, maxshape=limits)


def _packed(file: h5py.File, name: str, secret: Path) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, data=values, compression="gzip", chunks=True)


def _another(file: h5py.File, name: str, secret: Path) -> None:
    file.create_dataset("attached", data=np.frombuffer(b"#!/bin/sh", np.uint8))


def _of_another_type(file: h5py.File, name: str, secret: Path) -> None:
    values = file[name][()]
    del file[name]
    file.create_dataset(name, data=values.astype(np.float64))


HARMS: dict[str, Callable[[h5py.File, str, Path], None]] = {
    "an external link": _external_link,
    "a soft link": _soft_link,
    "external storage": _external_storage,
    "a virtual set": _virtual,
    "a group": _group,
    "strings": _objects,
    "references": _references,
    "a huge set": _huge,
    "huge chunks": _huge_chunks,
    "another filter": _packed,
    "one set more": _another,
    "another type": _of_another_type,
}
