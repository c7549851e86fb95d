"""Files that would run code or write elsewhere in a careless reader; here they make one folder.

What they would do is harmless: `mkdir` of a marker in the trial's own folder. A test sees in a
careless reader that they are armed.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import pathlib
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Random = np.random.Generator


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *values: Any) -> None:
        self.function = function
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.values


def payload(random: Random, marker: Path) -> Call:
    """A call that makes the marker, by one of many ways."""
    path = str(marker)
    python = f"__import__('os').mkdir({path!r})"
    ways: list[Call] = [
        Call(os.mkdir, path),
        Call(os.makedirs, path),
        Call(os.system, f"mkdir {path!r}"),
        Call(eval, python),
        Call(exec, python),
        Call(subprocess.call, ["mkdir", path]),
        Call(subprocess.Popen, ["mkdir", path]),
        Call(pathlib.Path.mkdir, pathlib.PosixPath(path)),
        Call(functools.partial(os.mkdir, path)),
        Call(map, os.mkdir, [path]),
        Call(list, Call(map, os.mkdir, [path])),
        Call(getattr, Call(__import__, "os"), "mkdir"),
        Call(torch.load, io.BytesIO(pickle.dumps(Call(os.mkdir, path)))),
    ]
    return ways[int(random.integers(len(ways)))]


def hidden(random: Random, call: Call) -> Any:
    """The call among things that belong into a checkpoint."""
    tensors = {"encoder.norm.weight": torch.ones(3), "encoder.norm.bias": torch.zeros(3)}
    wrapped: list[Any] = [
        call,
        {"state_dict": tensors, "epoch": call},
        {**tensors, "extra": call},
        {"hyper_parameters": [1, (2, call)], **tensors},
        {call.__class__.__name__: tensors, "callbacks": {"a": {"b": [call]}}},
        (tensors, call),
    ]
    return wrapped[int(random.integers(len(wrapped)))]


def _opcodes(path: str) -> dict[str, bytes]:
    """Pickles written by hand, by what runs the code: Python's own pickler seldom writes them."""
    quoted = repr(path).encode()
    short = struct.pack("<B", len(path)) + path.encode()
    long = struct.pack("<I", len(path)) + path.encode()
    python = repr(f"__import__('os').mkdir({path!r})").encode()
    assert len(path) < 256
    return {
        "reduce": b"cos\nmkdir\n(S" + quoted + b"\ntR.",  # GLOBAL, MARK, STRING, TUPLE, REDUCE
        "inst": b"(S" + quoted + b"\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS" + quoted + b"\no.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c" + short + b"\x85R.",
        "newobj": b"\x80\x02cos\nmkdir\nq\x00(X" + long + b"t\x81.",
        "memo": b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94\x93\x94h\x02\x8c" + short + b"\x85R.",
        "put-get": b"cos\nmkdir\np1\n0g1\n(S" + quoted + b"\ntR.",
        "eval": b"cbuiltins\neval\n(S" + python + b"\ntR.",
        "in-dict": b"}(S'a'\ncos\nmkdir\n(S" + quoted + b"\ntRu.",
        "torch-load": b"ctorch\nload\n(cos\nmkdir\n(S" + quoted + b"\ntRtR.",
        # A state that BUILD would set on an object, and one with a __setstate__ of its own.
        "build": b"cfunctools\npartial\n(cos\nmkdir\ntR(cos\nmkdir\n(S" + quoted + b"\nt}Ntb(tR.",
        "build-state": b"ccollections\nOrderedDict\n)R}S'x'\ncos\nmkdir\n(S" + quoted + b"\ntRsb.",
    }  # fmt: skip


def raw_opcodes(random: Random, marker: Path) -> bytes:
    """One of the pickles written by hand."""
    forms = list(_opcodes(str(marker)).values())
    return forms[int(random.integers(len(forms)))]


def by_hand(form: str, random: Random, marker: Path) -> bytes:
    """The pickle written by hand of that name."""
    return _opcodes(str(marker))[form]


def pickled(protocol: int, random: Random, marker: Path) -> bytes:
    """A bare pickle of an object with `__reduce__`, of one protocol."""
    content = hidden(random, payload(random, marker))
    if not isinstance(content, Call):  # tensors are not what plain pickle carries well
        content = {"a": payload(random, marker)}
    return pickle.dumps(content, protocol=protocol)


def as_torch(is_zip: bool, random: Random, marker: Path) -> bytes:
    """What `torch.save` makes of it, as a zip or in the older form."""
    file = io.BytesIO()
    content = hidden(random, payload(random, marker))
    protocol = int(random.integers(2, 6))
    torch.save(content, file, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    return file.getvalue()


def as_archive(random: Random, marker: Path) -> bytes:
    """A zip made by hand around a pickle: other folders, packed parts, a program beside it."""
    packed = zipfile.ZIP_DEFLATED if random.random() < 0.3 else zipfile.ZIP_STORED
    folder = str(random.choice(["archive", "model", "..", "a/b", "/abs"]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as archive:
        archive.writestr(f"{folder}/data.pkl", raw_opcodes(random, marker))
        archive.writestr(f"{folder}/version", "3\n")
        if random.random() < 0.5:
            archive.writestr(f"{folder}/constants.pkl", raw_opcodes(random, marker))
            code = f"import os\nos.mkdir({str(marker)!r})\n"
            archive.writestr(f"{folder}/code/__torch__.py", code)
        if random.random() < 0.5:
            archive.writestr(f"../../{marker.name}", "outside")
    return file.getvalue()


def as_tar(random: Random, marker: Path) -> bytes:
    """The tar of torch's first years, and one that would unpack outside of its folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", f"../{marker.name}"):
            content = raw_opcodes(random, marker)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(marker.parent)
        archive.addfile(link)
    return file.getvalue()


def as_numpy(random: Random, marker: Path) -> bytes:
    """`.npy` or `.npz` of pickled objects."""
    file = io.BytesIO()
    objects = np.empty(2, object)
    objects[:] = [payload(random, marker), 1]
    if random.random() < 0.5:
        np.save(file, objects, allow_pickle=True)
    else:
        np.savez(file, train_images=objects)
    return file.getvalue()


def as_safetensors(random: Random, marker: Path) -> bytes:
    """A pickle where numbers or a header belong."""
    raw = raw_opcodes(random, marker)
    entry = b'"a": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}' % (len(raw), len(raw))
    tag = b'"__metadata__": {"encoder": "!!python/object/apply:os.mkdir"}'
    header = b"{" + (entry + b", " if random.random() < 0.5 else b"") + tag + b"}"
    return struct.pack("<Q", len(header)) + header + raw


Maker = Callable[[Random, Path], bytes]
PICKLES: dict[str, Maker] = {
    **{f"protocol-{number}": functools.partial(pickled, number) for number in range(6)},
    **{f"opcodes-{form}": functools.partial(by_hand, form) for form in _opcodes("")},
    "torch-zip": functools.partial(as_torch, True),
    "torch-legacy": functools.partial(as_torch, False),
    "archive": as_archive,
    "tar": as_tar,
}
"""All forms of a pickle that carries code."""
KINDS: dict[str, Maker] = {
    **PICKLES,
    "numpy": as_numpy,
    "safetensors": as_safetensors,
    "gzip": lambda random, marker: gzip.compress(raw_opcodes(random, marker)),
}


def kind_of(trial: int) -> str:
    """The kinds in turn, so that no form is left to chance."""
    return list(KINDS)[trial % len(KINDS)]


ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".safetensors", ".npy", ".npz", "")
