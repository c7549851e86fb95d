"""Row 36: weights are taken whole and exactly, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_metadata, encoder_tensors, load_whole, transfer_encoder
from mim3d.training.checkpoints import Checkpoints, Saved, read_weights, weights_digest
from tests.reliability.proof import Tally, proof

Tensors = dict[str, Tensor]
Random = np.random.Generator
CONFIG = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)


class Perturbed(NamedTuple):
    """A state and whether every number of the encoder is still said exactly by it."""

    tensors: Tensors
    is_whole: bool


@proof(rows=(36,), trials="checkpoints with keys dropped, renamed, reshaped, cast or prefixed",
       quick=24, full=2000, stretch=500)  # fmt: skip
def perturbed_checkpoints(trials: range, seed: int, folder: Path) -> Tally:
    """An encoder is loaded whole, every tensor equal to the file's, or stays as it was."""
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "perturbed checkpoint")
        torch.manual_seed(int(random.integers(2**31)))
        source = {f"encoder.{k}": v for k, v in VolumeViT(CONFIG).state_dict().items()}
        kind = str(random.choice(list(KINDS)))
        given = KINDS[kind](random, {**source, "head.weight": torch.ones(3)})
        written = _written_and_read(given.tensors, folder / str(trial))
        tally.add(trial, *_tried(kind, written, given.is_whole))
    return tally


@proof(rows=(36,), trials="segmenters whose checkpoint lost, gained or changed one tensor",
       quick=20, full=300, stretch=100)  # fmt: skip
def perturbed_segmenters(trials: range, seed: int, folder: Path) -> Tally:
    """A network that predicts is loaded whole, or refused key by key."""
    tally = Tally()
    encoder = EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4), channels=1)
    network = UNETR(VolumeViT(encoder), 3, DecoderConfig(name="light"))
    whole = {key: value.clone() for key, value in network.state_dict().items()}
    for trial in trials:
        random = generator(seed, trial, "perturbed segmenter")
        given = KINDS[str(random.choice(["dropped", "renamed", "reshaped", "added", "emptied"]))]
        tensors = given(random, whole).tensors
        try:
            load_whole(network, tensors, source="a run")
        except UserError as error:
            kept = _equal(network, whole) and "`" in str(error.remedy)
            tally.add(trial, "refused", None if kept else "a refused state changed the network")
        else:
            tally.add(trial, "loaded", "a state that does not fit was loaded")
    return tally


def _tried(kind: str, tensors: Tensors, is_whole: bool) -> tuple[str, str | None]:
    torch.manual_seed(1)
    encoder = VolumeViT(CONFIG)
    before = weights_digest(encoder.state_dict())
    try:
        report = transfer_encoder(encoder, tensors, source="a checkpoint")
    except UserError as error:
        if weights_digest(encoder.state_dict()) != before:
            return "refused", f"{kind}: refused, and the encoder is another"
        if is_whole:
            return "refused", f"{kind}: every number was there, and it was refused: {error}"
        return "refused", None
    except Exception as error:
        return "crashed", f"{kind}: {type(error).__name__}: {error}"[:300]
    inside = encoder_tensors(tensors)[0]
    if set(report.loaded) != set(encoder.state_dict()):
        return "loaded", f"{kind}: the report does not name every tensor"
    if not _equal(encoder, inside):
        return "loaded", f"{kind}: a loaded tensor is not the file's"
    return "loaded, equal", None if is_whole else f"{kind}: it was taken for whole"


def _equal(module: nn.Module, tensors: Tensors) -> bool:
    """Whether all numbers are the same, compared in double precision."""
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(
        torch.equal(state[key].double(), tensors[key].double()) for key in state
    )


def _written_and_read(tensors: Tensors, folder: Path) -> Tensors:
    """The state by way of a checkpoint's file."""
    header = encoder_metadata(CONFIG)
    step = Checkpoints(folder).write(
        1, weights=tensors, header=header, saved=Saved({}, {"step": 1}), is_best=False
    )
    return read_weights(step)[0]


def _pick(random: Random, tensors: Tensors) -> str:
    inside = [key for key in tensors if not key.startswith("head.")]
    return inside[int(random.integers(len(inside)))]


def _dropped(random: Random, tensors: Tensors) -> Perturbed:
    gone = {_pick(random, tensors) for _ in range(int(random.integers(1, 4)))}
    return Perturbed({k: v for k, v in tensors.items() if k not in gone}, False)


def _renamed(random: Random, tensors: Tensors) -> Perturbed:
    key = _pick(random, tensors)
    changes: list[Callable[[str], str]] = [
        lambda k: k + "s", lambda k: k.upper(), lambda k: k.replace(".", "_"), lambda k: k[:-1],
        lambda k: k.replace("blocks.0", "blocks.7").replace("norm", "ln").replace("e", "E", 1),
        lambda k: f" {k}",
    ]  # fmt: skip
    new = changes[int(random.integers(len(changes)))](key)
    return Perturbed({new if k == key else k: v for k, v in tensors.items()}, new == key)


def _reshaped(random: Random, tensors: Tensors) -> Perturbed:
    key = _pick(random, tensors)
    value = tensors[key]
    shapes = [value.reshape(-1, 1), value[None], value.flatten()[:-1], value.repeat(2, *[1] * (
        value.ndim - 1))]  # fmt: skip
    new = shapes[int(random.integers(len(shapes)))]
    return Perturbed({**tensors, key: new}, new.shape == value.shape)


def _cast(random: Random, tensors: Tensors) -> Perturbed:
    """Other types: wider and narrower ones are exact or said; whole numbers are no weights."""
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool]
    kind = kinds[int(random.integers(len(kinds)))]
    keys = list(tensors) if random.random() < 0.5 else [_pick(random, tensors)]
    cast = {k: v.to(kind) if k in keys else v for k, v in tensors.items()}
    return Perturbed(cast, kind.is_floating_point)


def _rounded(random: Random, tensors: Tensors) -> Perturbed:
    """Double precision that the encoder would have to round."""
    key = _pick(random, tensors)
    return Perturbed({**tensors, key: tensors[key].double() + 1e-12 / 3 + 1 / 3}, False)


def _prefixed(random: Random, tensors: Tensors) -> Perturbed:
    prefixes = ["module.", "model.", "_orig_mod.", "encoder.", "net.encoder.", "teacher."]
    prefix = prefixes[int(random.integers(len(prefixes)))]
    only = _pick(random, tensors) if random.random() < 0.3 else None
    moved = {prefix + k if only in (None, k) else k: v for k, v in tensors.items()}
    return Perturbed(moved, False)


def _added(random: Random, tensors: Tensors) -> Perturbed:
    key = f"{_pick(random, tensors)}.{int(random.integers(9))}"
    return Perturbed({**tensors, key: torch.zeros(2)}, False)


def _emptied(random: Random, tensors: Tensors) -> Perturbed:
    key = _pick(random, tensors)
    value = tensors[key].clone()
    value.view(-1)[int(random.integers(value.numel()))] = float(
        random.choice([np.nan, np.inf, -np.inf])
    )
    return Perturbed({**tensors, key: value}, False)


def _shuffled(random: Random, tensors: Tensors) -> Perturbed:
    keys = [str(key) for key in random.permutation(list(tensors))]
    return Perturbed({key: tensors[key] for key in keys}, True)


KINDS: dict[str, Callable[[Random, Tensors], Perturbed]] = {
    "dropped": _dropped,
    "renamed": _renamed,
    "reshaped": _reshaped,
    "cast": _cast,
    "rounded": _rounded,
    "prefixed": _prefixed,
    "added": _added,
    "emptied": _emptied,
    "in another order": _shuffled,
}
