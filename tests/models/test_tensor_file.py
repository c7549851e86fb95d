"""Our writer of safetensors against the format's own library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mim3d.foundation.errors import DiskError
from mim3d.models import tensor_file
from mim3d.models.tensor_file import TYPES, write_tensors


def tensors() -> dict[str, Tensor]:
    ramp = torch.arange(11 * 13.0).view(11, 13)
    # Of another layout, of no axis, of no number, and a part of another tensor.
    odd = {"turned": ramp.T, "number": torch.tensor(7), "none": torch.zeros(0, 3), "row": ramp[3]}
    kinds = {f"ü{name}": (ramp[:3, :5] % 2).to(kind) for kind, name in TYPES.items()}
    return {**odd, **kinds}


def test_every_tensor_begins_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "own", tensors(), {"encoder": "ü"})

    raw = (tmp_path / "own").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert digest == hashlib.sha256(raw).hexdigest()
    assert header.pop("__metadata__") == {"encoder": "ü"}
    for key, entry in header.items():
        assert (8 + length + entry["data_offsets"][0]) % tensors()[key].element_size() == 0


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "own", tensors(), {})

    read = load_file(tmp_path / "own")

    assert read.keys() == tensors().keys()
    for key, tensor in tensors().items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor)


def test_no_room_is_said_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "own", {"a": torch.zeros(3)}, {})
    before = (tmp_path / "own").read_bytes()
    monkeypatch.setattr("mim3d.foundation.disk.free_bytes", lambda folder: 2**20)

    with pytest.raises(DiskError, match=r"needs at least 4\.0 MiB and 1\.0 MiB are free"):
        write_tensors(tmp_path / "own", {"a": torch.zeros(2**20)}, {})

    assert (tmp_path / "own").read_bytes() == before


def test_what_does_not_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "file_digest", lambda path: "0" * 64)

    with pytest.raises(DiskError, match="does not read back"):
        write_tensors(tmp_path / "own", {"a": torch.zeros(3)}, {})

    assert list(tmp_path.iterdir()) == []
