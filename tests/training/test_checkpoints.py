"""Checkpoint folders: whole, verified, and never without a `last` that loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mim3d.foundation.errors import UserError
from mim3d.training.checkpoints import (
    Checkpoints,
    Saved,
    flatten_optimiser,
    part,
    read_state,
    read_weights,
    restore_optimiser,
    weights_digest,
)


def tensors(step: int) -> dict[str, Tensor]:
    return {
        "encoder.a": torch.arange(6.0).view(2, 3).T + step,
        "encoder.b": torch.tensor(step),
        "decoder.c": torch.tensor([True, False]),
        "decoder.d": torch.randn(3, generator=torch.Generator().manual_seed(step)).bfloat16(),
    }


def write(checkpoints: Checkpoints, step: int, *, is_best: bool = False) -> Path:
    saved = Saved({f"weights/{k}": v for k, v in tensors(step).items()}, {"step": step})
    return checkpoints.write(
        step,
        weights=tensors(step),
        header={"encoder": '{"width": 3}'},
        saved=saved,
        is_best=is_best,
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = write(Checkpoints(tmp_path), 7)

    weights, header = read_weights(folder)
    saved = read_state(folder)

    assert header == {"encoder": '{"width": 3}'}
    assert saved.numbers["step"] == 7
    for name, tensor in tensors(7).items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(part(saved.tensors, "weights")[name], tensor)


def test_last_and_best_are_relative_links_and_the_rest_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (5, 10, 15, 20):
        write(checkpoints, step, is_best=step == 10)

    names = {item.name for item in checkpoints.folder.iterdir()}

    assert names == {"10", "20", "last", "best"}
    assert os.readlink(checkpoints.folder / "last") == "20"
    assert os.readlink(checkpoints.folder / "best") == "10"
    assert checkpoints.find("best") == checkpoints.folder / "10"


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints").find("last") is None
    assert Checkpoints(tmp_path / "checkpoints").sweep() == 0


@pytest.mark.parametrize("moment", ["weights", "rename", "link"])
def test_killed_while_writing_the_older_checkpoint_stays(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 5, is_best=True)
    # Nothing is tidied up after a kill: the temporary names stay as they are.
    monkeypatch.setattr("mim3d.foundation.atomic.shutil.rmtree", lambda *a, **k: None)

    class Killed(BaseException):
        pass

    def die(*arguments: object) -> None:
        raise Killed

    target = {
        "weights": "mim3d.models.tensor_file.file_digest",
        "rename": "mim3d.foundation.atomic.os.replace",
        "link": "mim3d.training.checkpoints.point",
    }[moment]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, die)
        write(checkpoints, 10)

    folder = checkpoints.find("last")
    assert folder is not None
    assert folder.name == "5"
    assert read_state(folder).numbers["step"] == 5
    # The next one goes through as if nothing had been.
    monkeypatch.undo()
    assert read_state(write(checkpoints, 10)).numbers["step"] == 10


def test_killed_at_any_file_operation_every_acknowledged_checkpoint_loads(tmp_path: Path) -> None:
    program = Path(__file__).with_name("kill_program.py")
    command = [sys.executable, "-W", "ignore", str(program), str(tmp_path / "checkpoints")]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    # Two checkpoints of three files, each with its folders, links and removals.
    assert int(done.stdout) > 40


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors"])
def test_every_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    folder = write(Checkpoints(tmp_path), 5)
    read = read_weights if name.startswith("weights") else read_state
    content = bytearray((folder / name).read_bytes())

    for place in range(0, len(content), 41):
        content[place] ^= 1 << place % 8
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            read(folder)
        content[place] ^= 1 << place % 8


def test_every_flipped_bit_of_the_numbers_is_found(tmp_path: Path) -> None:
    folder = write(Checkpoints(tmp_path), 5)
    content = (folder / "state.json").read_bytes()

    for place in range(len(content)):
        for bit in range(8):
            other = bytearray(content)
            other[place] ^= 1 << bit
            (folder / "state.json").write_bytes(other)
            with pytest.raises(UserError, match=r"damaged|format"):
                read_state(folder)


def test_a_missing_file_and_another_format_are_said(tmp_path: Path) -> None:
    folder = write(Checkpoints(tmp_path), 5)
    numbers = (folder / "state.json").read_text()

    (folder / "state.json").write_text(numbers.replace('"format": 2', '"format": 3'))
    with pytest.raises(UserError, match="format 3, this version reads format 2 and older"):
        read_state(folder)
    (folder / "state.json").write_text(numbers[:40])
    with pytest.raises(UserError, match="damaged"):
        read_state(folder)
    (folder / "state.json").write_text(numbers)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors` is missing"):
        read_weights(folder)


def test_moments_of_the_optimiser_come_back_by_name() -> None:
    def built() -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
        net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        parameters = dict(net.named_parameters())
        return parameters, torch.optim.AdamW(net.parameters(), fused=True)

    parameters, optimiser = built()
    for place, parameter in enumerate(parameters.values()):
        # The last one never had a gradient and has no moments.
        parameter.grad = None if place == 3 else torch.full_like(parameter, place + 1.0)
    optimiser.step()

    flat = flatten_optimiser(optimiser, parameters)
    others, other = built()
    restore_optimiser(other, others, flat)

    assert len(flat) == 3 * 3
    assert others["1.bias"] not in other.state
    for name in ("0.weight", "0.bias", "1.weight"):
        for entry, value in optimiser.state[parameters[name]].items():
            assert torch.equal(other.state[others[name]][entry], value)


def test_digest_tells_any_change_of_value_name_shape_and_type() -> None:
    base = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    changed = [
        {"a": torch.arange(6.0).nextafter(torch.tensor(9.0)), "b": torch.tensor(1)},
        {"c": torch.arange(6.0), "b": torch.tensor(1)},
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)},
        {"a": torch.arange(6.0), "b": torch.tensor(1, dtype=torch.int32)},
        {"a": torch.arange(6.0)},
    ]

    digest = weights_digest(base)

    assert weights_digest(dict(reversed(base.items()))) == digest
    assert len({digest, *map(weights_digest, changed)}) == 6
