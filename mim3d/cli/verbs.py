"""The verbs: one table from what is typed to the workflow that does it.

Each entry imports its workflow only when it is called, so that `mim3d --help` loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mim3d.config.convert import ConvertConfig
from mim3d.config.plan import FinetunePlanConfig, PretrainPlanConfig
from mim3d.config.verbs import (
    BenchmarkConfig,
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.foundation.reporting import Reporter

if TYPE_CHECKING:
    from mim3d.workflows.result import Result


EVERYWHERE = frozenset({"help", "version", "quiet", "verbose", "debug"})
WRITES = frozenset({"out", "overwrite", "dry_run"})


@dataclass(frozen=True)
class Call:
    """One command as it was typed, ready for its workflow.

    Args:
        words: the positional arguments by name, each a list.
        config: the resolved config, or None for a verb without one.
        name: the name of the config, for the run's folder.
        said: the settings that file and line name.
        out: what `--out` says.
        flags: the switches that were set: `overwrite`, `dry_run`, `json`.
        reporter: where messages go.
        assumed: what was assumed to come to this config.
    """

    words: dict[str, list[str]]
    config: Any
    name: str
    said: frozenset[str]
    out: str | None
    flags: frozenset[str]
    reporter: Reporter
    assumed: tuple[str, ...] = ()

    def word(self, name: str) -> str:
        """A positional argument that must be there."""
        return self.words[name][0]

    @property
    def writing(self) -> dict[str, Any]:
        """The keywords of every verb that writes and can say beforehand what."""
        return {"reporter": self.reporter, "overwrite": "overwrite" in self.flags,
                "dry_run": "dry_run" in self.flags}  # fmt: skip


@dataclass(frozen=True)
class Positional:
    """An argument without a name.

    Args:
        name: as it stands in the usage line.
        text: what it is.
        least: how many are needed, 0 or 1.
        many: whether more than one may follow.
    """

    name: str
    text: str
    least: int = 1
    many: bool = False


@dataclass(frozen=True)
class Verb:
    """What one verb is.

    Args:
        summary: one line for `mim3d --help`.
        story: what it does, for its own help.
        examples: lines to copy.
        run: calls the workflow.
        config: the config class, or None.
        positionals: arguments without name, in order.
        switches: which of `out`, `overwrite`, `dry_run`, `json`, `config` it takes.
        needs_out: whether `--out` must be given.
        kinds: config classes by verb, where CONFIG may be that of several; `config` is then the
            first one's until it is known.
    """

    summary: str
    story: str
    examples: tuple[str, ...]
    run: Callable[[Call], Result]
    config: type | None = None
    positionals: tuple[Positional, ...] = ()
    switches: frozenset[str] = frozenset()
    needs_out: bool = False
    kinds: Mapping[str, type] = field(default_factory=dict)

    @property
    def all_switches(self) -> frozenset[str]:
        """Its own switches and those of every verb."""
        return self.switches | EVERYWHERE | ({"print_config"} if self.config else set())


def _demo(call: Call) -> Result:
    from mim3d.workflows.demo import demo

    overwrite = "overwrite" in call.flags
    return demo(out=call.out, config=call.config, reporter=call.reporter, overwrite=overwrite)


def _doctor(call: Call) -> Result:
    from mim3d.workflows.doctor import doctor

    path = next(iter(call.words["PATH"]), None)
    return doctor(path, reporter=call.reporter)


def _prepare(call: Call) -> Result:
    from mim3d.workflows.prepare import prepare

    return prepare(call.word("SOURCE"), out=str(call.out), config=call.config, **call.writing)


def _pretrain(call: Call) -> Result:
    from mim3d.workflows.pretrain import pretrain

    return pretrain(call.config, out=call.out, name=call.name, said=call.said, **call.writing)


def _finetune(call: Call) -> Result:
    from mim3d.workflows.finetune import finetune

    return finetune(call.config, out=call.out, name=call.name, said=call.said, **call.writing)


def _predict(call: Call) -> Result:
    from mim3d.workflows.predict import predict

    inputs = call.words["INPUT"]
    return predict(call.word("RUN"), inputs, out=str(call.out), config=call.config, **call.writing)


def _evaluate(call: Call) -> Result:
    from mim3d.workflows.evaluate import evaluate

    predictions, labels = call.word("PREDICTIONS"), call.word("LABELS")
    return evaluate(predictions, labels, out=call.out, config=call.config, reporter=call.reporter)


def _info(call: Call) -> Result:
    from mim3d.workflows.info import info

    return info(call.word("PATH"), reporter=call.reporter)


def _convert(call: Call) -> Result:
    from mim3d.workflows.convert import convert

    checkpoint, out = call.word("CHECKPOINT"), str(call.out)
    return convert(checkpoint, out=out, config=call.config, said=call.said, **call.writing)


def _plan(call: Call) -> Result:
    from mim3d.workflows.plan.plan import plan

    return plan(call.config, out=call.out, reporter=call.reporter, assumed=call.assumed)


def _benchmark(call: Call) -> Result:
    from mim3d.workflows.benchmark import benchmark

    return benchmark(
        call.word("KIND"),
        source=next(iter(call.words["CONFIG"]), None),
        out=call.out,
        config=call.config,
        reporter=call.reporter,
        dry_run="dry_run" in call.flags,
    )


VERBS: dict[str, Verb] = {
    "demo": Verb(
        summary="the whole path on a synthetic cohort, in minutes and without data",
        story="Makes a small labelled cohort, pre-trains on it, fine-tunes from the pre-trained "
        "encoder and from scratch, predicts, evaluates, and prints a table and the pictures.",
        examples=("mim3d demo", "mim3d demo --out demo-1 --seed 1"),
        run=_demo,
        config=DemoConfig,
        switches=frozenset({"out", "overwrite", "json"}),
    ),
    "doctor": Verb(
        summary="check this machine, or every checksum of a store or run",
        story="Without PATH: Python, versions, memory, disk, codecs and precision, one line each. "
        "With a store or a run: every checksum in it.",
        examples=("mim3d doctor", "mim3d doctor stores/hippocampus", "mim3d doctor --json"),
        run=_doctor,
        positionals=(Positional("PATH", "a store or run to verify", least=0),),
        switches=frozenset({"json"}),
    ),
    "prepare": Verb(
        summary="from files of scans to a store",
        story="Reads, orients and checks every case of SOURCE, resamples where asked, and writes a "
        "store: one HDF5 file a case with checksums. A case that cannot be read is refused "
        "by name and the others go on; the same command resumes.",
        examples=(
            "mim3d prepare Task04_Hippocampus --out stores/hippocampus",
            "mim3d prepare scans/ --out stores/ct --modality ct --spacing_mm 1.5,1.5,3",
            "mim3d prepare cases.csv --out stores/liver --prepare.window_hu -175,250",
        ),
        run=_prepare,
        config=PrepareConfig,
        positionals=(
            Positional(
                "SOURCE",
                "an MSD or nnU-Net folder or its dataset.json, a folder of images, or of images "
                "and labels, a CSV, a MedMNIST archive (.npz), one file, or DICOM series",
            ),
        ),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "pretrain": Verb(
        summary="from a store to a pre-trained encoder, which never learns from labels",
        story="Trains the encoder to predict masked voxels. The same command continues an "
        "unfinished run.",
        examples=(
            "mim3d pretrain hippocampus --data.store stores/hippocampus",
            "mim3d pretrain my.yaml --out runs/mine --optim.lr 5e-4 --encoder.patch 8,8,8",
            "torchrun --nproc_per_node=8 -m mim3d pretrain my.yaml",
        ),
        run=_pretrain,
        config=PretrainConfig,
        positionals=(Positional("CONFIG", "a YAML file, or the name of a config that ships"),),
        switches=WRITES | {"json"},
    ),
    "finetune": Verb(
        summary="from a store with labels and a pre-trained run to a segmenter",
        story="Trains a segmenter on the encoder of another run, or from scratch with `--init "
        "none`. The same command continues an unfinished run.",
        examples=(
            "mim3d finetune hippocampus --store store --init runs/pretrain-hippocampus",
            "mim3d finetune hippocampus --store store --init none --labels 0.1",
        ),
        run=_finetune,
        config=FinetuneConfig,
        positionals=(Positional("CONFIG", "a YAML file, or the name of a config that ships"),),
        switches=WRITES | {"json"},
    ),
    "predict": Verb(
        summary="from a fine-tuned run and scans to label maps on the scans' own grids",
        story="Writes one label map an input, under the input's name, with its shape, orientation "
        "and spacing. Several runs, parted by commas, are averaged.",
        examples=(
            "mim3d predict runs/finetune-hippocampus scan.nii.gz --out predictions",
            "mim3d predict runs/a,runs/b scans/ --out predictions --inference.flips x,y",
        ),
        run=_predict,
        config=PredictConfig,
        positionals=(
            Positional("RUN", "a fine-tuned run, or several parted by commas"),
            Positional("INPUT", "files, DICOM folders, or anything `prepare` takes", many=True),
        ),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "evaluate": Verb(
        summary="from predictions and labels to a table with intervals",
        story="Pairs files by name and measures Dice, HD95 and normalised surface Dice for every "
        "case and class, with bootstrap intervals over subjects. Of predicted classes and numbers "
        "(`predictions.csv`): accuracy, F1, ROC-AUC, errors and correlations.",
        examples=(
            "mim3d evaluate predictions labelsTs --out results.json",
            "mim3d evaluate predictions.csv stores/adrenal --out results.json",
        ),
        run=_evaluate,
        config=EvaluateConfig,
        positionals=(
            Positional("PREDICTIONS", "folder (or file) of predicted label maps; predictions.csv"),
            Positional("LABELS", "folder (or file) of true label maps; or store, CSV, .npz"),
        ),
        switches=frozenset({"out", "config", "json"}),
    ),
    "info": Verb(
        summary="what a store, run or result holds",
        story="Describes anything that mim3d made.",
        examples=("mim3d info stores/hippocampus", "mim3d info runs/pretrain-hippocampus --json"),
        run=_info,
        positionals=(Positional("PATH", "a store, a run, or a results.json"),),
        switches=frozenset({"json"}),
    ),
    "convert": Verb(
        summary="from another program's checkpoint to weights without code",
        story="Takes the tensors out of a .pt, .pth, .ckpt, .bin or .safetensors file, renames "
        "them by a key map, and says what became of each. Pickles are opened with `weights_only` "
        "in a process without network. A run folder takes a whole encoder, for `--init`; a file "
        "takes every tensor.",
        examples=(
            "mim3d convert encoder.pt --out runs/converted --encoder.preset small",
            "mim3d convert last.ckpt --out weights.safetensors --section state_dict",
            "mim3d convert model.pth --out runs/theirs --key_map theirs.yaml --dry_run",
        ),
        run=_convert,
        config=ConvertConfig,
        positionals=(Positional("CHECKPOINT", "the file of weights"),),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "plan": Verb(
        summary="what a training will need: parameters, FLOP, memory, data, hours",
        story="Takes one step of the config's real task without numbers, and reckons with what the "
        "GPU is known to do, or with what this machine does in a few seconds. Trains nothing.",
        examples=(
            "mim3d plan my.yaml",
            "mim3d plan hippocampus --verb pretrain --store stores/hippocampus",
            "mim3d plan my.yaml --gpu h200 --devices 64 --volumes 100000 --out plan.json",
        ),
        run=_plan,
        config=PretrainPlanConfig,
        kinds={"pretrain": PretrainPlanConfig, "finetune": FinetunePlanConfig},
        positionals=(
            Positional("CONFIG", "a YAML file of `pretrain` or `finetune`, or a name that ships"),
        ),
        switches=frozenset({"out", "verb", "json"}),
    ),
    "benchmark": Verb(
        summary="what each stage costs on this machine; which pre-training pays",
        story="`throughput` times every stage, from reading a file to evaluating a prediction, on "
        "a synthetic cohort in a temporary folder: beside this machine's own limits, and in turns "
        "with MONAI where that is installed. `convergence` pre-trains by every method that CONFIG "
        "lists under one budget, fine-tunes from each and from scratch by one recipe at every "
        "label fraction, and reports how much faster and how much better; the same command goes "
        "on, and several share the runs with `--shard`.",
        examples=(
            "mim3d benchmark throughput",
            "mim3d benchmark throughput --stages pretrain,finetune --out here.json",
            "mim3d benchmark throughput --quick false --threads 8",
            "mim3d benchmark convergence convergence.yaml --out runs/convergence --dry_run",
            "mim3d benchmark convergence convergence.yaml --out runs/convergence --shard 0/4",
        ),
        run=_benchmark,
        config=BenchmarkConfig,
        positionals=(
            Positional("KIND", "`throughput` or `convergence`"),
            Positional("CONFIG", "`convergence`: a YAML file that lists the arms", least=0),
        ),
        switches=frozenset({"out", "dry_run", "config", "json"}),
    ),
}  # fmt: skip

ALIASES: dict[str, tuple[str, ...]] = {
    "seed": ("training.seed",),
    "device": ("training.device", "throughput.device"),
    "precision": ("training.precision",),
    "steps": ("training.steps",),
    "store": ("data.store", "convergence.store"),
    "labels": ("data.labels",),
    "fold": ("data.fold",),
    "workers": ("data.workers", "prepare.workers"),
    "spacing_mm": ("prepare.spacing_mm",),
    "modality": ("prepare.modality",),
    "pattern": ("prepare.pattern",),
    "case_ids": ("prepare.case_ids",),
    "keep_paths": ("prepare.keep_paths",),
    "verify": ("prepare.verify",),
    "save_probabilities": ("inference.save_probabilities",),
    "allow_missing": ("evaluation.allow_missing",),
    "series": ("read.series",),
    "gpu": ("plan.gpu",),
    "devices": ("plan.devices",),
    "volumes": ("plan.volumes",),
    "epochs": ("plan.epochs",),
    "stages": ("throughput.stages",),
    "quick": ("throughput.quick",),
    "repeats": ("throughput.repeats",),
    "threads": ("training.threads", "throughput.threads"),
    "shard": ("convergence.shard",),
    "section": ("convert.section",),
    "key_map": ("convert.key_map",),
}
"""Short names: each stands for the first of its settings that the verb has."""
