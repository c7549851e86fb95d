"""Another program's checkpoint, opened where nothing follows if it means harm."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mim3d.config.convert import ConversionConfig
from mim3d.foundation.child import child_command
from mim3d.foundation.digests import file_digest
from mim3d.foundation.documents import DocumentError, parsed
from mim3d.foundation.errors import WeightsError
from mim3d.models.foreign_tables import LEFT
from mim3d.models.key_map import KeyMap, renamed
from mim3d.models.unpickling import REFUSED
from mim3d.models.weights import load_weights

ENDING = ".safetensors"
LONGEST_LINE = 4096


class Opened(NamedTuple):
    """Tensors by their old keys, and where further ones stand, which are not taken."""

    tensors: dict[str, Tensor]
    left: dict[str, int]


@dataclass(frozen=True)
class Converted:
    """The tensors of a foreign file under our names.

    Args:
        tensors: by new key.
        names: every old key, with the new one or None where the map left it out.
        left: places of the file whose tensors stand under no name of the table that was taken,
            and how many they are.
        digest: SHA-256 of the file.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str | None]
    left: dict[str, int]
    digest: str


def read_foreign(checkpoint: str | Path, config: ConversionConfig, key_map: KeyMap) -> Converted:
    """The tensors of a foreign file.

    Raises:
        WeightsError: it cannot be read, or holds more than tensors.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise WeightsError(
            f"`{checkpoint}` is no file",
            remedy="give a file that ends in .pt, .pth, .ckpt, .bin or .safetensors",
            code="no-weights",
        )
    size = path.stat().st_size
    if size > config.max_gib * 2**30:
        raise WeightsError(
            f"`{checkpoint}` has {size / 2**30:.1f} GiB, more than the {config.max_gib:g} allowed",
            remedy="raise `--convert.max_gib` if that is right",
            code="too-large",
        )
    opened = _of_safetensors if _is_safetensors(path) else unpickled
    tensors, left = opened(path, config)
    kept, dropped = renamed(tensors, key_map)
    names: dict[str, str | None] = {**kept, **dict.fromkeys(dropped)}
    ours = {kept[key]: tensor for key, tensor in tensors.items() if key in kept}
    return Converted(ours, {key: names[key] for key in tensors}, left, file_digest(path))


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return path.suffix == ENDING or (len(head) == 9 and head[8:] == b"{" and head[7] == 0)


def _of_safetensors(path: Path, config: ConversionConfig) -> Opened:
    tensors = load_weights(path).tensors
    head = f"{config.section}." if config.section else ""
    chosen = {k[len(head) :]: v for k, v in tensors.items() if k.startswith(head)}
    if not chosen:
        raise WeightsError(
            f"`{path}` has no tensor whose key begins with `{head}`", code="no-section"
        )
    return Opened(chosen, {key: 1 for key in tensors if not key.startswith(head)})


def unpickled(path: Path, config: ConversionConfig) -> Opened:
    """The tensors of a file that torch pickled, opened in a process of its own.

    Raises:
        WeightsError: it holds more than tensors, is damaged, or ended or stalled that process.
    """
    with tempfile.TemporaryDirectory(prefix="mim3d-convert-") as folder:
        result = Path(folder) / "weights.safetensors"
        command = child_command("mim3d.models.unpickling", str(path.resolve()), str(result),
                                config.section or "", str(config.seconds))  # fmt: skip
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=config.seconds + 60,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise _refused(path, f"it is not read within {config.seconds:g} s") from None
        if done.returncode:
            raise _refused(path, reason_of(done.returncode, done.stderr))
        return _read(path, result)


def _read(path: Path, result: Path) -> Opened:
    try:
        tensors, metadata = load_weights(result)
        left = parsed(metadata[LEFT])
        return Opened(tensors, {str(place): int(count) for place, count in left.items()})
    except (WeightsError, DocumentError, LookupError, ValueError, AttributeError) as error:
        raise _refused(path, "the process that read it left no sound result") from error


def _environment(folder: str) -> dict[str, str]:
    """What a Python process needs to start, and nothing that tells of the user."""
    needed = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "VIRTUAL_ENV")
    kept = {name: os.environ[name] for name in needed if name in os.environ}
    return {**kept, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}


def reason_of(code: int, errors: bytes) -> str:
    """Why the process that opens pickles ended, in half a sentence.

    Args:
        code: its exit code.
        errors: its standard error, of which the last line counts; libraries warn before it.
    """
    if code == REFUSED:
        try:
            return str(parsed(errors[-LONGEST_LINE:].splitlines()[-1])["refused"])
        except (DocumentError, LookupError, TypeError):
            return "it cannot be read"
    how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the process that read it {how}"


def _refused(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"`{path}` is not taken: {reason}",
        remedy="only files of plain tensors are; if you trust it, load it where it was made and "
        "save its `state_dict` alone, best as safetensors",
        code="not-tensors",
    )
