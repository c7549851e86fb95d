"""A safetensors file, written tensor by tensor: whole or not at all, and read back.

The library's own writer holds a second copy of all tensors and does not say what the disk had
against it. The format is eight bytes with the length of a JSON header, the header, the numbers:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim3d.foundation.atomic import whole_file
from mim3d.foundation.digests import file_digest
from mim3d.foundation.disk import unlike

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ALIGNMENT = 8


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> str:
    """Writes a whole safetensors file.

    Args:
        path: where; replaced whole if it exists.
        tensors: by key, of any device and layout, and of the types of `TYPES`.
        metadata: words only.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        DiskError: it cannot be written, or does not read back; the older file is untouched.
    """
    path = Path(path)
    # The widest numbers first, so that each tensor begins at a multiple of its own width.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    head = _head({key: tensors[key] for key in order}, metadata)
    need = len(head) + sum(tensor.nbytes for tensor in tensors.values())
    written = hashlib.sha256()
    raws = map(_raw, map(tensors.__getitem__, order))
    pieces: Iterable[bytes | memoryview] = itertools.chain([head], raws)
    with whole_file(path, need=need) as temporary:
        with open(temporary, "wb") as file:
            for piece in pieces:
                written.update(piece)
                file.write(piece)
        if file_digest(temporary) != written.hexdigest():
            raise unlike(path)
    return written.hexdigest()


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[key] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _raw(tensor: Tensor) -> memoryview:
    """Its bytes; one tensor at a time comes to the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
