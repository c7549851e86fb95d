"""Documents of YAML and JSON that mean harm or are simply wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from mim3d.config.verbs import (
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.config.writing import dump, to_mapping

Random = np.random.Generator
CONFIGS: tuple[type, ...] = (
    PretrainConfig, FinetuneConfig, PrepareConfig, PredictConfig, EvaluateConfig,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**63) - 1, 10**300, 1e308, -1e308, 1e-320, 0.5, "", " ",
    "none", "null", "yes", "010", "1:30", "1e3", "0x10", "nan", ".inf", "a" * 5000, "\u0000",
    "\ud800", "\u202e", "../../x", "/dev/zero", "~/.netrc", "$(id)", "`id`", "%s%n",
    "{0.__class__}", "!!python/name:os.system", [], {}, [[]], [None], {"a": 1},
    [1, 2, 3], [[1, 2], [3, 4]],
)  # fmt: skip
NAMES = (
    "_target_", "_partial_", "class_path", "init_args", "__class__", "__reduce__", "!include",
    "imports", "plugin", "callable", "function", "module", "loss.name", "os.system", "<<", "$ref",
)  # fmt: skip
DOTTED = (
    "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "mim3d.cli.main.main",
    "monai.networks.nets.UNet", "pathlib.Path", "importlib.import_module", "$__import__('os')",
    "${oc.env:HOME}", "@model", "%file", "__main__.x", "numpy.load", "my_package.losses:Dice",
)  # fmt: skip
ALIASES = tuple(zip("abcdefgh", "bcdefghi", strict=True))


def document(random: Random, kind: type) -> bytes:
    """A document that is nearly a config, or a trap."""
    makers: list[Callable[[Random, type], bytes]] = [_changed, _cut, _trap, _noise, _as_json]
    chances = [0.4, 0.15, 0.25, 0.1, 0.1]
    return makers[int(random.choice(len(makers), p=chances))](random, kind)


def changed(random: Random, value: Any, changes: int = 1) -> Any:
    """A JSON value with something in it replaced, dropped, added, doubled or wrapped."""
    for _ in range(changes):
        value = _changed_once(random, value)
    return value


def _changed_once(random: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = list(value)[int(random.integers(len(value)))]
        match int(random.integers(6)):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                name = str(random.choice([*NAMES, key + "x", key[:-1], key.upper()]))
                return {(name if k == key else k): v for k, v in value.items()}
            case 2:
                name = str(random.choice(NAMES))
                return {**value, name: str(random.choice(DOTTED))}
            case _:
                return {**value, key: _changed_once(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = int(random.integers(len(value)))
        match int(random.integers(4)):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value + value
            case _:
                return [*value[:place], _changed_once(random, value[place]), *value[place + 1 :]]
    wrapped = ([value], {"a": value}, str(value), VALUES[int(random.integers(len(VALUES)))])
    return wrapped[int(random.choice(4, p=[0.1, 0.1, 0.1, 0.7]))]


def text_of_json(value: Any) -> bytes:
    """JSON as Python writes it, what JSON does not know (`NaN`, lone surrogates) included."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _mapping(kind: type) -> dict[str, Any]:
    return to_mapping(kind())


def _changed(random: Random, kind: type) -> bytes:
    value = changed(random, _mapping(kind), int(random.integers(1, 5)))
    try:
        return dump(value).encode("utf-8", "replace") if isinstance(value, dict) else b"- 1\n"
    except Exception:  # what YAML cannot write, JSON can
        return text_of_json(value)


def _as_json(random: Random, kind: type) -> bytes:
    return text_of_json(changed(random, _mapping(kind), int(random.integers(1, 5))))


def _cut(random: Random, kind: type) -> bytes:
    """The text with bytes changed, lines moved or doubled, or cut off."""
    text = bytearray(dump(_mapping(kind)).encode())
    for _ in range(int(random.integers(1, 8))):
        place = int(random.integers(len(text)))
        match int(random.integers(4)):
            case 0:
                text[place] = int(random.integers(256))
            case 1:
                marks = b"{}[]:,&*!|>'\"%@`-?#\t\n\x00\xff~<"
                text[place:place] = bytes([marks[int(random.integers(len(marks)))]])
            case 2:
                del text[place : place + int(random.integers(1, 40))]
            case _:
                start = text.rfind(b"\n", 0, place) + 1
                line = text[start : text.find(b"\n", start) + 1]
                text[start:start] = line
        if not text:
            break
    return bytes(text)


def _noise(random: Random, kind: type) -> bytes:
    marks = b"{}[]:,&*!|>'\"%@-? #\nab01.~<=\t"
    count = int(random.integers(1, 400))
    if random.random() < 0.2:
        return random.bytes(count)
    return bytes(marks[place] for place in random.integers(len(marks), size=count))


def _trap(random: Random, kind: type) -> bytes:
    """Tags, aliases, depth, length, doubled keys, several documents, names of code."""
    count = int(10 ** random.uniform(1, 5.2))
    name = str(random.choice(DOTTED))
    section = next(iter(_mapping(kind)))
    traps = [
        f"{section}: !!python/object/apply:{name} ['mkdir executed']",
        f"!!python/object/new:{name} {{}}",
        f"{section}: {{_target_: {name}, args: [x]}}",
        f"{section}:\n  {name}: 1",
        f"{name}: 1",
        f"? !!python/name:{name}\n: 1",
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in ALIASES),
        f"{section}: &x\n  <<: *x",
        "[" * count, "{" * count, "- " * count, '{"a":' * count, "a:\n " * (count // 10),
        "\n".join(f"{' ' * i}a:" for i in range(min(count, 800))),
        f"{section}: {'9' * count}", f"{'k' * count}: 1", f"{section}: '{'v' * count}'",
        "\n".join(f"k{i}: {i}" for i in range(min(count, 30_000))),
        f"{section}: 1\n{section}: 2\n" * min(count, 1000),
        "---\n" * min(count, 5000), "%YAML 9.9\n---\na: 1", "%TAG ! tag:x,2000:\n---\n!a b",
        f"{section}: !!binary {'A' * count}", f"{section}: !!set {{a, b}}",
        "!!timestamp 2001-01-01",
        "a: |\n" + "  text\n" * min(count, 10_000), "? [a, b]\n: c", "{a: 1, ? b, : c}",
        "#" * count, "\n" * count, " " * count, "'" + "''" * count,
        '"' + "\\x41" * min(count, 9999),
        f"{section}: {{}}\n" + "... \n" * min(count, 1000),
    ]  # fmt: skip
    text = traps[int(random.integers(len(traps)))]
    coding = str(random.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-32"]))
    return text.encode(coding)
