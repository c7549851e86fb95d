"""Checkpoint folders: what prediction uses, and all that an exact resume needs. No pickle.

A checkpoint is `<step>/weights.safetensors`, `state.safetensors` and `state.json`; the last holds
counters, the checksums of the other two and its own. It is written beside and renamed whole, then
`last` and `best` (relative links) are switched, then what neither points at is removed: a process
killed at any moment leaves a `last` that loads.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim3d.foundation.atomic import point, sweep, whole_folder, write_text
from mim3d.foundation.digests import file_digest
from mim3d.foundation.documents import DocumentError, LaterVersion, bounded, sealed, versioned
from mim3d.foundation.errors import UserError
from mim3d.models.weights import load_weights, save_weights

FORMAT = 2
"""Of format 1, `state.json` had no checksum of its own; it is read as it is."""
STEP = re.compile(r"[0-9]{1,18}")
WEIGHTS, STATE, NUMBERS = "weights.safetensors", "state.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds for a resume.

    Args:
        tensors: flat, named `weights/…`, `mean/…`, `optimiser/…`.
        numbers: counters and positions, as JSON.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Args:
        folder: made when the first checkpoint is written.
        check: raises where this process may no longer write; called before each checkpoint.
    """

    def __init__(self, folder: Path, check: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.are_anothers = False
        """Whether those that are there belong to a run that this one will replace."""
        self._check = check

    def find(self, which: str = "last") -> Path | None:
        """The checkpoint that `last` or `best` points at, or None where there is none.

        Raises:
            UserError: it points at something else than a checkpoint of this run.
        """
        link = self.folder / which
        if self.are_anothers or not link.is_symlink():
            return None
        name = os.readlink(link)
        if not STEP.fullmatch(name):
            raise UserError(
                f"`{which}` of the run does not point at one of its checkpoints",
                where=str(self.folder),
                remedy="restore the link: its target is the name of the folder beside it",
                code="checkpoint-link",
            )
        return self.folder / name

    def write(
        self,
        step: int,
        *,
        weights: Mapping[str, Tensor],
        header: Mapping[str, str],
        saved: Saved,
        is_best: bool,
    ) -> Path:
        """Writes a checkpoint, switches `last` (and `best`), removes the ones left over.

        Args:
            step: names the folder.
            weights: what prediction uses.
            header: metadata of the weights' file.
            saved: what a resume uses.
            is_best: whether `best` is to point at it.

        Raises:
            DiskError: it cannot be written; the older checkpoints are untouched.
            UserError: another process has taken the run over.
        """
        if self._check is not None:
            self._check()
        folder = self.folder / str(step)
        need = sum(tensor.nbytes for tensor in (*weights.values(), *saved.tensors.values()))
        with whole_folder(folder, need=need) as temporary:
            checksums = {
                WEIGHTS: save_weights(temporary / WEIGHTS, weights, header),
                STATE: save_weights(temporary / STATE, saved.tensors, {}),
            }
            numbers = {"format": FORMAT, "checksums": checksums, **saved.numbers}
            write_text(temporary / NUMBERS, sealed(numbers))
        # `best` first: a state that `last` resumes from may say that this step was the best.
        if is_best:
            point(self.folder / "best", folder.name)
        point(self.folder / "last", folder.name)
        self._remove_others()
        return folder

    def _remove_others(self) -> None:
        kept = {self.find("last"), self.find("best")}
        for folder in self.folder.iterdir():
            if folder.name.isdigit() and folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> int:
        """Removes what a killed process left unfinished; returns how many."""
        if not self.folder.is_dir():
            return 0
        swept = sweep(self.folder)
        last = self.find("last")
        if last is not None and last.is_dir():
            self._remove_others()
        return swept


def read_state(folder: Path) -> Saved:
    """What a resume needs, on the CPU.

    Raises:
        UserError: the checkpoint is damaged or of another format.
    """
    numbers = _numbers(folder)
    _check(folder, STATE, numbers)
    tensors, _ = load_weights(folder / STATE)
    return Saved(tensors, numbers)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What prediction uses, on the CPU, and the header of the file.

    Raises:
        UserError: the checkpoint is damaged or of another format.
    """
    _check(folder, WEIGHTS, _numbers(folder))
    return load_weights(folder / WEIGHTS)


def _numbers(folder: Path) -> dict[str, Any]:
    try:
        numbers = versioned(bounded(folder / NUMBERS), {"format": FORMAT}, _is_first)
        if not isinstance(numbers.get("checksums"), dict):
            raise DocumentError("it names no checksums")
    except LaterVersion as error:
        raise UserError(
            f"checkpoint `{folder.name}` is of format {str(error.found)[:20]}, this version reads "
            f"format {FORMAT} and older ones",
            where=str(folder),
            remedy="use the version of mim3d that `versions.json` of the run names",
            code="checkpoint-format",
        ) from error
    except (OSError, DocumentError) as error:
        raise _damaged(folder, NUMBERS) from error
    return numbers


def _is_first(numbers: dict[str, Any]) -> bool:
    return type(numbers.get("format")) is int and numbers["format"] == 1


def _check(folder: Path, name: str, numbers: dict[str, Any]) -> None:
    file = folder / name
    if not file.is_file() or file_digest(file) != numbers["checksums"].get(name):
        raise _damaged(folder, name)


def _damaged(folder: Path, name: str) -> UserError:
    return UserError(
        f"checkpoint `{folder.name}` is damaged: `{name}` is missing or not as it was written",
        where=str(folder),
        remedy="restore the file, or start the run again with `--overwrite`",
        code="checkpoint-damaged",
    )


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: equal exactly where all weights are equal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def flatten_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimiser's moments as `optimiser/<entry>/<parameter>`: no index, hence no order."""
    return {
        f"optimiser/{entry}/{name}": value
        for name, parameter in parameters.items()
        for entry, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Puts saved moments back; parameters that had none yet stay without."""
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, entry, name = key.split("/", 2)
            parameter = parameters[name]
            optimiser.state[parameter][entry] = value.to(parameter.device)


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors below `<name>/`, without it."""
    head = f"{name}/"
    return {key[len(head) :]: value for key, value in tensors.items() if key.startswith(head)}
