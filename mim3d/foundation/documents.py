"""JSON that is read back: bounded before it is parsed, strict, and sealed where it must not rot.

A JSON parser builds what the file asks for, however deep or large, lets a later key replace an
earlier one, and takes `NaN` for a number. Here size and depth are checked on the bytes, keys stand
once, and numbers are finite. A sealed document carries the checksum of all bytes before it, so that
not one of them can change unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mim3d.foundation.atomic import write_text
from mim3d.foundation.errors import UserError

MAX_BYTES = 64 * 2**20
"""A manifest of a hundred thousand cases fits."""
MAX_DEPTH = 50
SEAL = re.compile(rb' "checksum": "([0-9a-f]{64})"\n\}\n')


class DocumentError(ValueError):
    """A document that cannot be taken; says why in half a sentence."""


class LaterVersion(DocumentError):
    """A document of a version that this code does not know.

    Args:
        key: where the document says it.
        found: the version.
    """

    def __init__(self, key: str, found: int) -> None:
        super().__init__("a later version of mim3d wrote it")
        self.key = key
        self.found = found


def parsed(content: bytes | str) -> Any:
    """The value of a JSON text.

    Args:
        content: UTF-8, perhaps with a byte-order mark.

    Raises:
        DocumentError: not JSON, nested more than 50 deep, a key twice, a number that is none.
    """
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if deepest(raw) > MAX_DEPTH:
        raise DocumentError(f"it is nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(
            raw.decode("utf-8-sig") if isinstance(content, bytes) else content,
            object_pairs_hook=_once,
            parse_constant=_refused,
            parse_float=_finite,
        )
    except DocumentError:
        raise
    except UnicodeDecodeError:
        raise DocumentError("it is no JSON, for it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"it is no JSON (line {error.lineno}: {error.msg})") from None
    except ValueError:  # whole numbers of thousands of digits
        raise DocumentError("it holds a number that is too long") from None


def read_document(path: Path | str, *, most: int = MAX_BYTES) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        most: bytes it may have.

    Raises:
        DocumentError: it is larger, or no sound JSON.
        OSError: it cannot be read.
    """
    return parsed(bounded(path, most))


def read_object(
    path: Path | str, *, most: int = MAX_BYTES, remedy: str | None = None
) -> dict[str, Any]:
    """The object of a JSON file that a person or mim3d wrote.

    Args:
        path: the file.
        most: bytes it may have.
        remedy: what to do where it is damaged.

    Returns:
        A dict, by keys that are text.

    Raises:
        UserError: it cannot be read, is no sound JSON, or no object.
    """
    try:
        content = read_document(path, most=most)
        if not isinstance(content, dict):
            raise DocumentError("it holds no object")
    except (OSError, DocumentError) as error:
        reason = error.strerror or "unreadable" if isinstance(error, OSError) else str(error)
        raise UserError(
            f"`{Path(path).name}` cannot be used: {reason}",
            where=str(path),
            remedy=remedy,
            code="bad-json",
        ) from error
    return content


def bounded(path: Path | str, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file that may not have more than so many.

    Raises:
        DocumentError: it has.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DocumentError(f"it is larger than {most / 2**20:g} MiB")
    return content


def deepest(content: bytes) -> int:
    """How deep brackets and braces are nested outside of the strings of a JSON text."""
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return 0
    # Without escapes every quotation mark opens or closes a string.
    plain = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(plain.split(b'"')[::2])
    letters = bytes(set(range(256)) - set(b"[]{}"))
    brackets = np.frombuffer(outside.translate(None, letters), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depth = np.cumsum(np.where(opens, 1, -1).astype(np.int32), dtype=np.int32)
    return int(depth.max(initial=0))


def sealed(content: Mapping[str, Any]) -> str:
    """A JSON object as text that ends with the SHA-256 of everything before that number."""
    if "checksum" in content:
        raise ValueError("`checksum` is the seal's own key")
    whole = json.dumps({**content, "checksum": "0" * 64}, indent=1, allow_nan=False)
    head = whole[: -len('"\n}') - 64]
    return f'{head}{_sum(head.encode())}"\n}}\n'


def write_sealed(path: Path | str, content: Mapping[str, Any]) -> None:
    """Writes a whole sealed JSON file."""
    write_text(path, sealed(content))


def unsealed(content: bytes) -> dict[str, Any]:
    """What `sealed` made a text of.

    Raises:
        DocumentError: a byte is not as it was written, or the text never had a seal.
    """
    seal = SEAL.search(content, max(0, len(content) - 100))
    if seal is None or seal.end() != len(content):
        raise DocumentError("its checksum is missing")
    if _sum(content[: seal.start(1)]) != seal[1].decode():
        raise DocumentError("its checksum is wrong")
    value: dict[str, Any] = parsed(content)
    value.pop("checksum")
    return value


def versioned(
    content: bytes,
    newest: Mapping[str, int],
    is_first: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """The object of a sealed document, or of one of the version before there were seals.

    Args:
        content: the file's bytes.
        newest: keys that hold a version, and the highest of each that can be read.
        is_first: whether an object without a checksum says that it is of the version that had
            none. One that merely lacks it is damaged: a seal must not be lost by a flipped bit.

    Raises:
        LaterVersion: a later version of mim3d wrote it.
        DocumentError: it is no object, or not as it was written.
    """
    record = parsed(content)
    if not isinstance(record, dict):
        raise DocumentError("it holds no object")
    for key, most in newest.items():
        found = record.get(key)
        if isinstance(found, int) and found > most:
            raise LaterVersion(key, found)
    if "checksum" not in record and is_first(record):
        return record
    return unsealed(content)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise DocumentError(f"it has the key `{twice[:60]}` twice")
    return value


def _refused(word: str) -> NoReturn:
    raise DocumentError(f"it holds `{word}`, which is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise DocumentError("it holds a number that is too large")
    return number
