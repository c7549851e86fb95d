"""The process that opens another program's checkpoint: no network, no writing, tensors only.

`torch.load` with `weights_only=True` reads the pickle of a checkpoint without running what it
names. This process is built so that nothing follows if that ever fails: it has no network where the
system lets it give it up, may start no process and open no file but its result, and has limits of
memory, time and size. The parent takes its result for as foreign as the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import os
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from mim3d.foundation.machine import limit_memory
from mim3d.models.foreign_tables import LEFT, Refusal, plain_tensors

REFUSED = 3
"""Exit code with a sentence in the last line of standard error."""
NEW_USERS, NEW_NETWORK = 0x10000000, 0x40000000
SPARE_BYTES = 2 << 30
MOST_PARTS = 200_000
MOST_PICKLES, MOST_OPERATIONS = 10, 1_000_000
LONGEST_REASON = 300
TAR_MAGIC = 257
"""Where a tar says that it is one."""
FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
    "os.chown", "os.truncate", "os.kill", "shutil.", "ctypes.", "exec", "compile", "code.__new__",
    "pty.", "urllib.", "ftplib.", "smtplib.", "winreg.", "webbrowser.",
)  # fmt: skip
"""Audit events (https://docs.python.org/3/library/audit_events.html) that reading never needs."""


def main() -> NoReturn:
    """Reads `sys.argv[2]`, writes safetensors to `sys.argv[3]`; `sys.argv[4]` names the section."""
    source, result, section = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    warnings.simplefilter("ignore")  # standard error is for the reason alone
    leave_network()
    import safetensors.torch
    import torch

    torch.set_num_threads(1)
    warm_up(torch, safetensors.torch)
    limit(source.stat().st_size, float(sys.argv[5]))
    allowed = {os.fspath(result)}
    sys.addaudithook(lambda event, values: _watch(event, values, allowed))
    try:
        found = plain_tensors(_loaded(torch, source), section)
    except Refusal as reason:
        _end(str(reason))
    except MemoryError:
        _end("it unpacks to more than its size allows")
    except Exception as error:
        _end(told(error, source))
    safetensors.torch.save_file(found.tensors, result, {LEFT: json.dumps(found.left)})
    sys.stdout.flush()
    os._exit(0)


def leave_network() -> bool:
    """Moves this process into a network of its own, without any interface; says if it could."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        for flags in (NEW_NETWORK, NEW_USERS | NEW_NETWORK):
            if libc.unshare(flags) == 0:
                return True
    return False


def limit(size: int, seconds: float) -> None:
    """Bounds memory, time and the size of what is written by the size of the file."""
    import resource

    limit_memory(6 * size + SPARE_BYTES, for_good=True)
    whole = max(1, math.ceil(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    most = 2 * size + (64 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(event: str, values: tuple[Any, ...], allowed: set[str]) -> None:
    if event == "open" and len(values) > 2:
        path, mode, flags = values[:3]
        writes = bool(set(mode or "") & set("wax+")) if isinstance(mode, str) else False
        writes = writes or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and os.fspath(path) not in allowed:
            raise Refusal("it tries to write a file")
    elif event.startswith(FORBIDDEN):
        raise Refusal(f"it tries what no weights need (`{event}`)")


def warm_up(torch: Any, library: Any) -> None:
    """Imports now what loading and saving import when they are first used."""
    import io

    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
        file.seek(0)
        torch.load(file, weights_only=True, map_location="cpu")
    library.save({"a": torch.zeros(2)})
    # Words of each kind of pickle, whose codecs are imported when first met.
    for _ in pickletools.genops(b"(Va\nS'a'\nU\x01aX\x01\x00\x00\x00aca\na\nI1\nL1L\nF1\n."):
        pass
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(b"nothing"), weights_only=True, map_location="cpu")


def _loaded(torch: Any, source: Path) -> Any:
    with open(source, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            _check_archive(source)
        elif file.seek(TAR_MAGIC) and file.read(5) == b"ustar":
            # Torch would unpack it into a folder.
            raise Refusal("it is a tar of torch's first years")
        file.seek(0)
        return torch.load(file, weights_only=True, map_location="cpu")


def _check_archive(source: Path) -> None:
    """Torch stores its parts as they are: a packed one is a bomb or another program's archive."""
    try:
        with zipfile.ZipFile(source) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError):
        raise Refusal("its archive is damaged") from None
    if len(parts) > MOST_PARTS:
        raise Refusal(f"its archive has {len(parts):,} parts")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise Refusal("its archive is packed, which torch's never are")
    if any("constants.pkl" in part.filename or "/code/" in part.filename for part in parts):
        raise Refusal("it is a TorchScript program, not weights")
    if sum(part.file_size for part in parts) > source.stat().st_size:
        raise Refusal("the parts of its archive overlap")


def told(error: Exception, source: Path) -> str:
    """What was wrong, without torch's advice to switch its protection off."""
    text = str(error)
    if "legacy .tar" in text:
        return "it is a tar of torch's first years"
    if "WeightsUnpickler" in text or "Weights only" in text:
        named = re.search(r"GLOBAL ([\w.]{1,80})", text)
        name = named[1] if named else first_global(source)
        return f"it holds more than tensors (`{name}`)" if name else (
            "its pickle holds more than tensors")  # fmt: skip
    first = (text.strip().splitlines() or [""])[0]
    return f"torch cannot read it ({type(error).__name__}{': ' if first else ''}{first[:100]})"


def first_global(source: Path) -> str | None:
    """The first function or class that a pickle names and weights do not; nothing of it is run.

    Args:
        source: a pickle, several in a row, or torch's archive of one.
    """
    with contextlib.suppress(Exception), open(source, "rb") as file:
        pickled: IO[bytes] = file
        if file.read(2) == b"PK":
            archive = zipfile.ZipFile(source)
            parts = [part for part in archive.namelist() if part.endswith("data.pkl")]
            pickled = archive.open(parts[0])
        else:
            file.seek(0)
        for _ in range(MOST_PICKLES):
            for name in _globals(pickled):
                if not name.startswith(("torch.", "collections.OrderedDict")):
                    return "".join(letter if letter.isprintable() else "?" for letter in name[:80])
    return None


def _globals(pickled: IO[bytes]) -> Iterator[str]:
    """What one pickle names, by reading its operations."""
    words: list[str] = []
    for operation, value, _ in itertools.islice(pickletools.genops(pickled), MOST_OPERATIONS):
        if operation.name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL" and len(words) == 2:
            yield ".".join(words)
        elif operation.name.endswith("GET"):
            words = []  # a word from before, and which is not followed
        elif isinstance(value, str):
            words = [*words[-1:], value]


def _end(reason: str) -> NoReturn:
    """Leaves at once: nothing that the file may have built is cleaned up by its own code."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in reason[:LONGEST_REASON])
    os.write(2, b"\n" + json.dumps({"refused": shown}).encode())
    os._exit(REFUSED)
