"""Looks at frozen features during pre-training: do they get better, or only the loss?

A few labelled crops of the training list are read, never those that judge. The numbers choose
nothing, and a look leaves the task as it found it (`training.validation.undisturbed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.task import DecoderConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.batch import CropBatch
from mim3d.data.feed import Feed
from mim3d.data.store import Store
from mim3d.evaluation.probes import (
    constant_share,
    neighbour_dice,
    position_features,
    ridge_probe,
    rms,
)
from mim3d.evaluation.similarity import psnr, ssim
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.foundation.reporting import Reporter
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.taps import tap_numbers
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.health import rank_me
from mim3d.tokens.patches import cut_crop
from mim3d.training.run import Run
from mim3d.training.validation import Validator
from mim3d.workflows.probed_crops import ProbedCrops, labelled_crops

NAME = "probes"
CONTROLS = "probes.json"
"""What later looks stand beside: the encoder before the first step, and no encoder at all."""
LOOKS = 10
"""In a run whose config does not say how often."""
RANKED_TOKENS = 4096
"""Tokens of which rank and constant share are taken."""
RECONSTRUCTED = 8
"""Crops whose reconstruction is compared."""

TOLERANCE = 0.005
"""R2 by which the features may be below the untrained encoder's before it is a loss."""
LARGEST_CONSTANT = 0.9
"""Constant share above which tokens hardly differ; 0.99 was seen long before the loss showed it."""
LEAST_RANK = 0.25
"""Share of the rank at step 0 below which the features have collapsed."""

SHOWN = ("probe_r2", "probe_r2_step0", "probe_r2_voxels", "probe_dice", "knn_dice", "rank",
         "constant_share", "psnr", "ssim")  # fmt: skip
"""On the screen; the log has all."""


def probe_validators(
    store: Store, config: PretrainConfig, feed: Feed, run: Run, reporter: Reporter
) -> list[Validator]:
    """The probes of a pre-training run; none where `probes.every` is 0.

    Args:
        store: the prepared cohort.
        config: of the run.
        feed: of the run; the crops that are reconstructed come from it, not augmented.
        run: keeps what was found before the first step.
        reporter: hears what is looked at.

    Raises:
        ConfigError: numbers with which nothing can be probed.
    """
    every = _steps_between(config)
    if every == 0:
        return []
    labelled = labelled_crops(store, config)
    if labelled is None:
        why = "fewer than two subjects of the training list have labels"
        if config.probes.subjects == 0:
            why = "`probes.subjects` is 0"
        reporter.say(f"no segmentation probes: {why}; rank and reconstruction are looked at")
    else:
        fit, test = labelled
        reporter.say(
            f"probes every {every:,} steps on labelled crops of the training list: "
            f"{fit.count} of {fit.people} subjects to fit, {test.count} of {test.people} others to "
            "score; the encoder never learns from labels"
        )
    look = _Look(config, labelled, feed, run)
    return [Validator(NAME, every, look, at=(0,), shown=SHOWN, alarms=look.alarms)]


def _steps_between(config: PretrainConfig) -> int:
    probes = config.probes
    wrong = {
        "every": probes.every is not None and probes.every < 0,
        "subjects": probes.subjects < 0 or probes.subjects == 1,
        "crops": probes.crops < 2,
        "neighbours": probes.neighbours < 1,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                f"`probes.{name}` is {getattr(probes, name)}, with which nothing can be probed",
                remedy="`--probes.every 0` leaves the probes out",
                code="range",
            )
    return math.ceil(config.training.steps / LOOKS) if probes.every is None else probes.every


def alarms(numbers: Mapping[str, float], moment: Moment) -> dict[str, str]:
    """What a person should know of these numbers: a sentence each, by what is wrong.

    Args:
        numbers: of one look.
        moment: when. In the first quarter of a run features are often poor and recover, so nothing
            is said; the probe is given three quarters.
    """
    found: dict[str, str] = {}
    step = f"{moment.step:,}"
    if 4 * moment.step < moment.steps:
        return found
    r2, before = numbers.get("probe_r2", math.nan), numbers.get("probe_r2_step0", math.nan)
    if 4 * moment.step >= 3 * moment.steps and r2 < before - TOLERANCE:
        found["probe"] = (
            f"the features tell less of the labels than those of the untrained encoder: at step "
            f"{step} the linear probe explains {r2:.3f}, {before:.3f} before the first step; do "
            "not expect fine-tuning to gain from them"
        )
    share = numbers["constant_share"]
    if share > LARGEST_CONSTANT:
        found["constant"] = (
            f"at step {step} tokens hardly differ: {share:.2f} of their features is one vector "
            "common to all; try a lower `optim.lr` or another `objective.target`"
        )
    rank, first = numbers["rank"], numbers.get("rank_step0", math.nan)
    if rank < LEAST_RANK * first:
        found["rank"] = (
            f"the features collapse: at step {step} their rank is {rank:.1f}, {first:.1f} before "
            "the first step; try a lower `optim.lr`"
        )
    return found


def probed(numbers: Mapping[str, float]) -> str:
    """The last look as a person reads it; `numbers` have a linear probe's."""
    controls = {"before training": "step0", "voxels and position": "voxels"}
    beside = [
        f"{numbers[f'probe_r2_{key}']:.3f} {called}"
        for called, key in controls.items()
        if numbers.get(f"probe_r2_{key}") is not None
    ]
    text = f"linear probe R2 {numbers['probe_r2']:.3f}"
    return f"{text} ({', '.join(beside)})" if beside else text


@dataclass(frozen=True)
class _Seen:
    """What the encoder says of some tokens: `n d` after the final norm, and at each tap."""

    last: Tensor
    taps: tuple[Tensor, ...]


class _Look:
    """The function of the validator."""

    def __init__(
        self,
        config: PretrainConfig,
        labelled: tuple[ProbedCrops, ProbedCrops] | None,
        feed: Feed,
        run: Run,
    ) -> None:
        self.patch = config.encoder.patch
        self.neighbours = config.probes.neighbours
        self.labelled = labelled
        self.run = run
        self.fixed = feed.fixed(min(config.training.batch_size, RECONSTRUCTED))
        self.controls = self._known_controls()
        self.warned: set[str] = set()

    def __call__(self, task: Task, moment: Moment) -> dict[str, float]:
        numbers = self._features(task)
        numbers |= self._reconstruction(task, moment)
        if moment.step == 0:
            found = {**self._without_encoder(), **_at_step_0(numbers)}
            self.controls = {name: value for name, value in found.items() if math.isfinite(value)}
            self.run.write_json(CONTROLS, self.controls)
        return {**numbers, **self.controls}

    def alarms(self, numbers: Mapping[str, float], moment: Moment) -> list[str]:
        """What is newly wrong; at the end all that is."""
        found = alarms(numbers, moment)
        new = [kind for kind in found if kind not in self.warned or moment.step == moment.steps]
        self.warned.update(found)
        return [found[kind] for kind in new]

    def _known_controls(self) -> dict[str, float]:
        """What a run that goes on found at its start."""
        path = self.run.folder / CONTROLS
        goes_on = self.run.checkpoints.find() is not None
        return read_object(path) if goes_on and path.is_file() else {}

    def _features(self, task: Task) -> dict[str, float]:
        encoder = _encoder_of(task)
        numbers: dict[str, float] = {}
        if self.labelled is None:
            kept = [_whole_tokens(batch, self.patch) for batch in self.fixed]
            seen = [_seen(encoder, self.fixed, kept)]
        else:
            seen = [_seen(encoder, part.batches, part.kept) for part in self.labelled]
            with torch.autocast("cpu", enabled=False):
                fit, test = (
                    part.tokens(one.last) for part, one in zip(self.labelled, seen, strict=True)
                )
                score = ridge_probe(fit, test)
                numbers["probe_r2"], numbers["probe_dice"] = score.r2, score.dice
                numbers["knn_dice"] = neighbour_dice(fit, test, self.neighbours)
        with torch.autocast("cpu", enabled=False):
            return {**numbers, **_health(seen)}

    def _without_encoder(self) -> dict[str, float]:
        """How far the intensities behind a token and its place come by themselves."""
        if self.labelled is None:
            return {}
        places = [part.centres_mm(self.patch) for part in self.labelled]
        extent = places[0].double().amin(dim=0), places[0].double().amax(dim=0)
        where = [position_features(place, extent) for place in places]
        what = [part.voxels(self.patch) for part in self.labelled]
        controls = {
            "position": where,
            "voxels": [torch.cat(pair, dim=1) for pair in zip(what, where, strict=True)],
        }
        numbers = {}
        with torch.autocast("cpu", enabled=False):
            for name, features in controls.items():
                fit, test = (
                    part.tokens(one) for part, one in zip(self.labelled, features, strict=True)
                )
                score = ridge_probe(fit, test)
                numbers[f"probe_r2_{name}"] = score.r2
                numbers[f"probe_dice_{name}"] = score.dice
        return numbers

    def _reconstruction(self, task: Task, moment: Moment) -> dict[str, float]:
        """Of a task that reconstructs: on the same crops and masks at every look."""
        still = replace(moment, random=RandomStream(seed=0, step=0), wants_pictures=True)
        device = next(task.parameters()).device
        found: list[Tensor] = []
        for batch in self.fixed:
            pictures = task(batch.to(device), still).pictures
            if pictures is None or "reconstructed" not in pictures:
                return {}
            compared = [
                pictures[key].detach().cpu() for key in ("original", "reconstructed", "mask")
            ]
            with torch.autocast("cpu", enabled=False):
                found.append(torch.stack([psnr(*compared), ssim(*compared)]).flatten(1))
        values = torch.cat(found, dim=1)
        values[~values.isfinite()] = math.nan
        in_decibels, alike = values.nanmean(dim=1).tolist()
        return {"psnr": in_decibels, "ssim": alike}


def _at_step_0(numbers: Mapping[str, float]) -> dict[str, float]:
    kept = ("probe_r2", "probe_dice", "rank")
    return {f"{name}_step0": numbers[name] for name in kept if name in numbers}


def _encoder_of(task: Task) -> VolumeViT:
    encoder = task.encoder
    assert isinstance(encoder, VolumeViT)
    return encoder


def _whole_tokens(batch: CropBatch, patch: tuple[int, int, int]) -> Tensor:
    """Tokens that are not padding, `b n` bool."""
    crop = cut_crop(batch.voxels, batch.valid, patch).crop
    if crop.token_valid is not None:
        return crop.token_valid
    return torch.ones(len(batch.voxels), crop.grid.n, dtype=torch.bool)


def _seen(encoder: VolumeViT, batches: Sequence[CropBatch], kept: Sequence[Tensor]) -> _Seen:
    """Features of the kept tokens of whole crops, nothing masked, on the CPU."""
    device = next(encoder.parameters()).device
    numbers = sorted(set(tap_numbers(DecoderConfig(), encoder.depth)))
    last, tapped = [], []
    for batch, where in zip(batches, kept, strict=True):
        here = batch.to(device)
        states: HiddenStates = encoder(here.voxels, here.spacing_mm, valid=here.valid, taps=numbers)
        last.append(states.tokens.cpu()[where].float())
        tapped.append([tap.cpu()[where].float() for tap in states.taps])
    return _Seen(torch.cat(last), tuple(torch.cat(parts) for parts in zip(*tapped, strict=True)))


def _health(seen: Sequence[_Seen]) -> dict[str, float]:
    """Rank of the last features, largest constant share of all taps, size of the residual stream.

    The inner taps are taken as decoders take them, behind a LayerNorm.
    """
    last = _some(torch.cat([one.last for one in seen]))
    streams = [_some(torch.cat(taps)) for taps in zip(*(one.taps for one in seen), strict=True)]
    inner = [F.layer_norm(stream, stream.shape[1:]) for stream in streams[:-1]]
    return {
        "rank": float(rank_me(last)),
        "constant_share": max(constant_share(features) for features in (*inner, last)),
        "residual_rms": rms(streams[-1]),
    }


def _some(features: Tensor) -> Tensor:
    """Every so many rows, at most about `RANKED_TOKENS`."""
    return features[:: math.ceil(len(features) / RANKED_TOKENS)]
