"""Does an encoder that knows millimetres read volumes of other spacings better?

    mim3d prepare DATA --out stores/hippocampus
    OMP_NUM_THREADS=1 python benchmarks/spacing/resampled.py --data DATA \
        --store stores/hippocampus --out runs/spacing-hippocampus --seeds 0 1 2

Networks are trained at the store's spacing and judged on validation cases whose images and labels
were resampled to other spacings. They predict on that grid, and are judged on it. The same command
goes on where it was stopped: finished trainings stay, and what was judged. Seeds may be run one
after the other into one folder; the report holds what is there.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import resampled_report as report
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.config.inference import InferenceConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.blur import blur
from mim3d.data.classes import ClassTable
from mim3d.data.cohort import read_cohort
from mim3d.data.cohort.cases import Case
from mim3d.data.crop_warp import smoothing
from mim3d.data.files import read_label, read_volume
from mim3d.data.resample import (
    resample,
    resample_labels,
    resampled_affine,
    resampled_shape,
)
from mim3d.data.splits import validation_cases
from mim3d.data.store import Store, open_store
from mim3d.data.volume import Volume
from mim3d.evaluation.cases import Score, score_case
from mim3d.foundation.atomic import make_folder, write_json
from mim3d.foundation.digests import file_digest
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import PlainReporter, duration
from mim3d.inference.predict import predict_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.models.any_spacing import AtPatch, patch_for
from mim3d.workflows.finetune import finetune
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.tasks.segmentation import structures_of

Spacing = tuple[float, float, float]

RECIPE = Path(__file__).resolve().parents[1] / "convergence" / "hippocampus"
FACTORS = (0.7, 1.5, 2.0, 3.0)
RESCALE = (0.7, 3.0)
"""Factors that the trainings with rescaled crops draw from: those of the tests."""


@dataclass(frozen=True)
class Training:
    """A pre-training and the fine-tuning that starts from it."""

    name: str
    positions: str
    is_rescaled: bool


TRAININGS = (
    Training("native", "rotary_mm", is_rescaled=False),
    Training("rescaled", "rotary_mm", is_rescaled=True),
    Training("rescaled-index", "rotary_index", is_rescaled=True),
)


@dataclass(frozen=True)
class Arm:
    """A way to predict: the weights of which training, told what.

    Args:
        training: whose weights.
        by_index: the network is told the spacing of training, whatever it is: then its positions
            count voxels.
        is_resampled: the volume is resampled to the spacing of training, and its logits back.
        follows: patches keep the millimetres of training (`inference.patch by_spacing`); by index,
            positions count tokens then.
    """

    training: str
    by_index: bool = False
    is_resampled: bool = False
    follows: bool = False


ARMS: Mapping[str, Arm] = {
    "mm": Arm("native"),
    "index": Arm("native", by_index=True),
    "mm, patch by spacing": Arm("native", follows=True),
    "index, patch by spacing": Arm("native", by_index=True, follows=True),
    "index + resampling": Arm("native", by_index=True, is_resampled=True),
    "rescaled mm": Arm("rescaled"),
    "rescaled index": Arm("rescaled-index"),
    "rescaled mm + resampling": Arm("rescaled", is_resampled=True),
}


@dataclass(frozen=True)
class Condition:
    """Spacing of the test: a multiple of the case's own, along all axes or along z alone.

    Args:
        factor: multiple of the spacing.
        axes: `xyz` or `z`.
        is_whole: one window around what is larger than the crops of training; else windows of
            their size slide over it.
    """

    factor: float
    axes: str = "xyz"
    is_whole: bool = False

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.factor:g}-{self.axes}{'-whole' if self.is_whole else ''}"

    def spacing_mm(self, own: Spacing) -> Spacing:
        """The spacing of the test."""
        x, y, z = (s * self.factor if axis in self.axes else s
                   for axis, s in zip("xyz", own, strict=True))  # fmt: skip
        return x, y, z


def conditions(factors: Sequence[float]) -> tuple[Condition, ...]:
    """The spacing of training first, then all others; finer ones also with one window."""
    found = [Condition(1.0)]
    for axes, factor in itertools.product(("xyz", "z"), sorted(set(factors) - {1.0})):
        found.append(Condition(factor, axes))
        if factor < 1:
            found.append(Condition(factor, axes, is_whole=True))
    return tuple(found)


class ToldOneSpacing(nn.Module):
    """A network that is told one spacing, whatever the volume's is.

    Positions in millimetres are positions by index then: those of `rotary_index` at 1 mm.
    """

    def __init__(self, network: nn.Module, spacing_mm: Spacing) -> None:
        super().__init__()
        self.network = network
        self.told_mm = spacing_mm

    def forward(
        self, voxels: Tensor, spacing_mm: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Logits; `spacing_mm` does not matter."""
        logits: Tensor = self.network(voxels, spacing_mm=self.told_mm, valid=valid)
        return logits


@dataclass(frozen=True, eq=False)
class Resampled:
    """A case at the spacing of a test: the image, and its labels on the same grid."""

    case_id: str
    subject: str
    image: Volume
    labels: NDArray[Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, judges and reports, seed by seed."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    try:
        work = Work(options)
        for seed in options.seeds:
            for training in TRAININGS:
                work.train(training, seed)
                work.judge(training, seed)
                report.write(options.out, work.facts(), ARMS, work.conditions)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the store's source")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--rescale", type=float, nargs=2, default=list(RESCALE))
    parser.add_argument("--pretrain", type=Path, default=RECIPE / "pretrain.yaml")
    parser.add_argument("--finetune", type=Path, default=RECIPE / "finetune.yaml")
    parser.add_argument("--pretrain_steps", type=int, default=400)
    parser.add_argument("--finetune_steps", type=int, default=600)
    parser.add_argument("--cases", type=int, help="only the first so many, to try the script")
    parser.add_argument("--threads", type=int, default=1)
    return parser


class Work:
    """What the options ask for, done piece by piece; each piece that is there is kept.

    Args:
        options: of the command line.

    Raises:
        UserError: `--out` was begun with other options, or data and store do not agree.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.store = open_store(options.store)
        self.conditions = conditions(options.factors)
        self.reporter = PlainReporter()
        make_folder(self.out)
        self._keep_settings()
        self.cases = _cases(options.data, self.store)[: options.cases]
        if self.store.classes is None:
            raise UserError(f"store `{options.store}` has no labels", code="no-labels")
        self.classes: ClassTable = self.store.classes
        self.patch = read_config(options.pretrain, PretrainConfig).encoder.patch

    def facts(self) -> dict[str, Any]:
        """What the results depend on."""
        options = self.options
        plain = {"data.store": "STORE", "training.seed": 0}
        pretraining = read_config(options.pretrain, PretrainConfig, self._steps("pretrain") | plain)
        finetuning = read_config(options.finetune, FinetuneConfig, self._steps("finetune") | plain)
        return {
            "store": self.store.name,
            "manifest": file_digest(self.store.path / "manifest.json"),
            "spacing_mm": list(self.store.median_spacing_mm),
            "cases": len(self.cases),
            "trainings": [asdict(training) for training in TRAININGS],
            "arms": {name: asdict(arm) for name, arm in ARMS.items()},
            "rescale": list(options.rescale),
            "pretrain": to_mapping(pretraining),
            "finetune": to_mapping(finetuning),
            "runs": {
                str(path.parent.relative_to(self.out / "runs")): read_object(path).get("training")
                for path in sorted((self.out / "runs").glob("*/*/*/status.json"))
            },
        }

    def train(self, training: Training, seed: int) -> None:
        """Pre-trains and fine-tunes; a run that is done stays, one that was stopped goes on."""
        began = time.monotonic()
        pretrain(
            self._pretrain_config(training, seed),
            out=str(self._run("pretrain", training, seed)),
            name=training.name,
            reporter=self.reporter,
        )
        finetune(
            self._finetune_config(training, seed),
            out=str(self._run("finetune", training, seed)),
            name=training.name,
            reporter=self.reporter,
        )
        took = duration(time.monotonic() - began)
        self.reporter.say(f"training `{training.name}`, seed {seed}: {took}")

    def judge(self, training: Training, seed: int) -> None:
        """Predicts all cases under each condition with each arm of the training."""
        arms = {name: arm for name, arm in ARMS.items() if arm.training == training.name}
        folder = self.out / "judged" / f"seed-{seed}" / training.name
        make_folder(folder)
        own = load_segmenter(self._run("finetune", training, seed), device="cpu")
        for condition in self.conditions:
            path = folder / f"{condition.name}.json"
            if path.is_file() and set(read_object(path)["arms"]) == set(arms):
                continue
            began = time.monotonic()
            tests = [resampled_case(case, condition, self.classes) for case in self.cases]
            scores = {
                name: [asdict(score) for score in self._scored(own, arm, condition, tests)]
                for name, arm in arms.items()
            }
            seconds = time.monotonic() - began
            write_json(path, {"seed": seed, "seconds": seconds, "arms": scores})
            self.reporter.say(f"judged `{training.name}`, {condition.name}: {duration(seconds)}")

    def _scored(
        self, own: Segmenter, arm: Arm, condition: Condition, tests: Sequence[Resampled]
    ) -> Iterator[Score]:
        structures = structures_of(self.classes, None)
        inference: InferenceConfig = self._finetune_config(TRAININGS[0], 0).inference
        for test in tests:
            trained_mm, spacing_mm = self.store.median_spacing_mm, test.image.spacing_mm
            segmenter = segmenter_for(own, arm, trained_mm, spacing_mm)
            asked = replace(inference, patch="fixed")  # what follows, follows already
            if condition.is_whole:
                patch = patch_for(self.patch, trained_mm, spacing_mm) if arm.follows else self.patch
                asked = replace(asked, window=whole_window(test.image, segmenter, patch))
            guess = predict_volume(segmenter, test.image, asked)
            yield from score_case(
                test.labels, guess.voxels[0], test.image.spacing_mm, structures,
                case_id=test.case_id, subject=test.subject,
            )  # fmt: skip

    def _run(self, verb: str, training: Training, seed: int) -> Path:
        return self.out / "runs" / f"seed-{seed}" / training.name / verb

    def _pretrain_config(self, training: Training, seed: int) -> PretrainConfig:
        said = self._steps("pretrain") | self._said(training, seed)
        return read_config(self.options.pretrain, PretrainConfig, said)

    def _finetune_config(self, training: Training, seed: int) -> FinetuneConfig:
        said = self._steps("finetune") | self._said(training, seed)
        said["init"] = str(self._run("pretrain", training, seed))
        return read_config(self.options.finetune, FinetuneConfig, said)

    def _steps(self, verb: str) -> dict[str, Any]:
        steps: int = getattr(self.options, f"{verb}_steps")
        return {"training.steps": steps, "training.threads": self.options.threads}

    def _said(self, training: Training, seed: int) -> dict[str, Any]:
        said: dict[str, Any] = {
            "data.store": str(self.options.store),
            "encoder.positions": training.positions,
            "training.seed": seed,
        }
        if training.is_rescaled:
            said |= {
                "augmentation.rescale": list(self.options.rescale),
                "augmentation.rescale_axes": "each",
            }
        return said

    def _keep_settings(self) -> None:
        """Writes what decides the scores, or finds that they were begun with the same."""
        options = self.options
        settings = {
            "store": file_digest(self.store.path / "manifest.json"),
            "rescale": list(options.rescale),
            "steps": [options.pretrain_steps, options.finetune_steps],
            "recipe": [path.read_text() for path in (options.pretrain, options.finetune)],
            "cases": options.cases,
        }
        path = self.out / "settings.json"
        if not path.is_file():
            write_json(path, settings)
        elif read_object(path) != settings:
            raise UserError(
                f"`{self.out}` was begun with other options, recipes or another store",
                remedy="choose another --out",
                code="settings-differ",
            )


def segmenter_for(own: Segmenter, arm: Arm, trained_mm: Spacing, spacing_mm: Spacing) -> Segmenter:
    """The segmenter of a run, as an arm uses it in volumes of some spacing.

    Args:
        own: the run's.
        arm: one of those that share it.
        trained_mm: spacing of its training.
        spacing_mm: of the volumes.
    """
    assert own.rule is not None  # it comes from a run
    one = own.at_spacing(spacing_mm) if arm.follows else own
    if arm.by_index:
        # A token counts for one, however many voxels it has.
        told = trained_mm
        if isinstance(one.network, AtPatch):
            own_patch, patch = one.network.trained_patch, one.network.encoder.patch
            pairs = zip(trained_mm, own_patch, patch, strict=True)
            x, y, z = (was * edge / now for was, edge, now in pairs)
            told = (x, y, z)
        one = replace(one, network=ToldOneSpacing(one.network, told))
    if arm.is_resampled:
        one = replace(one, rule=replace(own.rule, spacing_mm=trained_mm))
    return one


def resampled_case(case: Case, condition: Condition, classes: ClassTable) -> Resampled:
    """A case at a multiple of its spacing.

    What becomes coarser is smoothed first, as voxels of that size are (`data.crop_warp.smoothing`);
    labels go by the library's rule for classes.
    """
    assert case.label is not None  # validation cases are labelled
    image, label = read_volume(case.images[0]), read_label(case.label, classes.values)
    spacing_mm, old = condition.spacing_mm(image.spacing_mm), image.spacing_mm
    if spacing_mm == old:
        return Resampled(case.case_id, case.subject_id, image, label.voxels[0])
    x, y, z = (new / was for new, was in zip(spacing_mm, old, strict=True))
    voxels = torch.from_numpy(np.ascontiguousarray(image.voxels, np.float32))[None]
    smooth = blur(voxels, None, [smoothing((x, y, z)).tolist()])[0].numpy()
    coarse = resample(smooth, old, spacing_mm)
    nx, ny, nz = coarse.shape[1:]
    affine = resampled_affine(image.affine, image.shape, (nx, ny, nz), spacing_mm)
    indices = resample_labels(classes.to_index(label.voxels[0]), old, spacing_mm)
    volume = Volume.from_array(coarse, affine)
    return Resampled(case.case_id, case.subject_id, volume, classes.to_value(indices))


def whole_window(volume: Volume, segmenter: Segmenter, patch: Triple) -> Triple:
    """A window of whole patches that holds what is seen of a volume, no smaller than the usual."""
    rule = segmenter.rule
    shape, spacing_mm = volume.shape, None if rule is None else rule.spacing_mm
    if spacing_mm is not None:
        shape = resampled_shape(shape, volume.spacing_mm, spacing_mm)
    x, y, z = (
        max(usual, -(-side // edge) * edge)
        for usual, side, edge in zip(segmenter.window, shape, patch, strict=True)
    )
    return x, y, z


def _cases(data: Path, store: Store) -> tuple[Case, ...]:
    """The files of the store's validation cases."""
    known = {case.case_id: case for case in read_cohort(data).cases}
    wanted = validation_cases(store, FinetuneConfig().data)
    missing = [case_id for case_id in wanted if case_id not in known]
    if missing or not wanted:
        raise UserError(
            f"`{data}` lacks {len(missing)} of the store's {len(wanted)} validation cases",
            remedy="give the source that the store was prepared from",
            code="other-source",
        )
    return tuple(known[case_id] for case_id in wanted)


if __name__ == "__main__":
    main()
