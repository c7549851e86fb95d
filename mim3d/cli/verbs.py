"""The verbs: one table from what is typed to the workflow that does it."""

from __future__ import annotations

from mim3d.cli import calls
from mim3d.cli.verb import WRITES, Positional, Verb
from mim3d.config.convert import ConvertConfig
from mim3d.config.embed import EmbedConfig
from mim3d.config.export import ExportConfig
from mim3d.config.inspect import InspectConfig
from mim3d.config.plan import FinetunePlanConfig, PretrainPlanConfig
from mim3d.config.probe import ProbeConfig
from mim3d.config.report import ReportConfig
from mim3d.config.verbs import (
    BenchmarkConfig,
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.config.view import ViewConfig

VERBS: dict[str, Verb] = {
    "demo": Verb(
        summary="the whole path on a synthetic cohort, in minutes and without data",
        story="Makes a small labelled cohort, pre-trains on it, fine-tunes from the pre-trained "
        "encoder and from scratch, predicts, evaluates, and prints a table and the pictures.",
        examples=("mim3d demo", "mim3d demo --out demo-1 --seed 1"),
        run=calls.run_demo,
        config=DemoConfig,
        switches=frozenset({"out", "overwrite", "json"}),
    ),
    "doctor": Verb(
        summary="check this machine, or every checksum of a store, run or hub folder",
        story="Without PATH: Python, versions, memory, disk, codecs and precision, one line each. "
        "With a store, a run or a hub folder: every checksum in it.",
        examples=("mim3d doctor", "mim3d doctor stores/hippocampus", "mim3d doctor --json"),
        run=calls.run_doctor,
        positionals=(Positional("PATH", "a store, run or hub folder to verify", least=0),),
        switches=frozenset({"json"}),
    ),
    "inspect": Verb(
        summary="what a folder of scans holds, and the `prepare` command that fits it",
        story="Reads all headers of PATH and prepares a few cases in a temporary folder. Says how "
        "many volumes of which modality, size, spacing and orientation there are, what stands "
        "against cases, how long preparation will take and how large the store will be, and what "
        "to type next. Settings of `prepare` and `read` may be given; nothing is written.",
        examples=(
            "mim3d inspect scans/",
            "mim3d inspect bids/ --prepare.contrasts T1w,FLAIR",
            "mim3d inspect dicom/ --read.series largest --json",
        ),
        run=calls.run_inspect,
        config=InspectConfig,
        positionals=(Positional("PATH", "anything that `prepare` takes, BIDS included"),),
        switches=frozenset({"config", "json"}),
    ),
    "prepare": Verb(
        summary="from files of scans to a store",
        story="Reads, orients and checks every case of SOURCE, resamples where asked, and writes a "
        "store: one HDF5 file a case with checksums. A case that cannot be read is refused "
        "by name and the others go on; the same command resumes. Several commands fill one store "
        "with `--shard`, also at the same time; the last to finish merges.",
        examples=(
            "mim3d prepare Task04_Hippocampus --out stores/hippocampus",
            "mim3d prepare scans/ --out stores/ct --modality ct --spacing_mm 1.5,1.5,3",
            "mim3d prepare cases.csv --out stores/liver --prepare.window_hu -175,250",
            "mim3d prepare ct/ --out stores/ct --shard 0/16",
        ),
        run=calls.run_prepare,
        config=PrepareConfig,
        positionals=(
            Positional(
                "SOURCE",
                "an MSD or nnU-Net folder or its dataset.json, a BIDS data set, a folder of "
                "images, or of images and labels, a CSV, a MedMNIST archive (.npz), one file, or "
                "DICOM series",
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
        run=calls.run_pretrain,
        config=PretrainConfig,
        positionals=(Positional("CONFIG", "a YAML file, or the name of a config that ships"),),
        switches=WRITES | {"json"},
    ),
    "finetune": Verb(
        summary="from a store with labels and a pre-trained run to a segmenter or classifier",
        story="Trains on the encoder of another run, or from scratch with `--init none`: a class "
        "for every voxel (`--task segmentation`), or for every volume a class (`classification`) "
        "or a number (`regression`) of the store's targets. The same command continues an "
        "unfinished run.",
        examples=(
            "mim3d finetune hippocampus --store store --init runs/pretrain-hippocampus",
            "mim3d finetune hippocampus --store store --init none --labels 0.1",
            "mim3d finetune msmae --store stores/adrenal --init runs/pretrain-msmae",
            "mim3d finetune my.yaml --task regression --classification.target age --init none",
        ),
        run=calls.run_finetune,
        config=FinetuneConfig,
        positionals=(Positional("CONFIG", "a YAML file, or the name of a config that ships"),),
        switches=WRITES | {"json"},
    ),
    "predict": Verb(
        summary="from a fine-tuned run and scans to label maps, or to classes and numbers",
        story="A segmenter writes one label map an input, under the input's name, on its own grid: "
        "shape, orientation and spacing. A run of whole volumes writes one `predictions.csv` with "
        "the class and its probabilities, or the number, of each. Several runs, parted by commas, "
        "are averaged. Several commands share the inputs with `--shard`, also at the same time.",
        examples=(
            "mim3d predict runs/finetune-hippocampus scan.nii.gz --out predictions",
            "mim3d predict runs/a,runs/b scans/ --out predictions --inference.flips x,y",
            "mim3d predict runs/finetune-msmae adrenalmnist3d_64.npz --out answers",
            "mim3d predict runs/a scans/ --out predictions --shard 0/8",
        ),
        run=calls.run_predict,
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
        run=calls.run_evaluate,
        config=EvaluateConfig,
        positionals=(
            Positional("PREDICTIONS", "folder (or file) of predicted label maps; predictions.csv"),
            Positional("LABELS", "folder (or file) of true label maps; or store, CSV, .npz"),
        ),
        switches=frozenset({"out", "config", "json"}),
    ),
    "report": Verb(
        summary="one page on runs, results and benchmarks, to open anywhere and to send",
        story="Writes what was run (settings, data, versions), curves with seeds as bands, "
        "pictures, tables that sort by a click with the worst cases first, box plots and costs "
        "into one HTML file that needs no network. Runs that differ by their seed alone are one "
        "line. Every number is one that the runs, `evaluate` or `benchmark` wrote.",
        examples=(
            "mim3d report runs/finetune-a runs/finetune-b --out report.html",
            "mim3d report runs/pretrain runs/finetune results.json --out report.html",
            "mim3d report runs/convergence --out benchmark.html --report.title Hippocampus",
            "mim3d report mim3d-demo --out demo.html --report.worst 12",
        ),
        run=calls.run_report,
        config=ReportConfig,
        positionals=(
            Positional(
                "PATH",
                "runs, `results.json` of `evaluate`, folders of a convergence benchmark, or a "
                "folder that holds some of these",
                many=True,
            ),
        ),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "info": Verb(
        summary="what a store, run or result holds",
        story="Describes anything that mim3d made.",
        examples=("mim3d info stores/hippocampus", "mim3d info runs/pretrain-hippocampus --json"),
        run=calls.run_info,
        positionals=(Positional("PATH", "a store, a run, a hub folder, or a results.json"),),
        switches=frozenset({"json"}),
    ),
    "view": Verb(
        summary="volumes, labels, predictions and pictures of runs in the browser",
        story="Serves a page until Ctrl-C, to this machine alone and only to who has the address. "
        "Shows images with their label maps and predictions over each other in three planes and "
        "3D, differences between them, Dice per class from results of `evaluate` or computed on "
        "the spot, and the pictures of runs. Cases of several paths are paired by their names. "
        "Reads nothing outside of the paths; needs no network.",
        examples=(
            "mim3d view scan.nii.gz organs.nii.gz",
            "mim3d view Task04_Hippocampus predictions results.json",
            "mim3d view stores/hippocampus",
            "mim3d view runs/pretrain-hippocampus",
            "mim3d view scans/ --port 8000 --browser false",
        ),
        run=calls.run_view,
        config=ViewConfig,
        positionals=(
            Positional(
                "PATH",
                "volumes, folders of images, labels or predictions, stores, runs, a dataset.json, "
                "a CSV, results of `evaluate`",
                many=True,
            ),
        ),
        switches=frozenset({"config", "dry_run", "json"}),
    ),
    "convert": Verb(
        summary="from another program's checkpoint to weights without code",
        story="Takes the tensors out of a .pt, .pth, .ckpt, .bin or .safetensors file, renames "
        "them, and says what became of each. Checkpoints of MONAI's ViT, UNETR, ViTAutoEnc and "
        "MaskedAutoEncoderViT, of MIM-Med3D, SelfMedMAE and facebookresearch/mae are known by "
        "their keys (`--layout` names one) and reshaped; another patch, channels or positions are "
        "adapted, and said so. Others go by a key map. Pickles are opened with `weights_only` "
        "in a process without network. A run folder takes a whole encoder, for `--init`, and of a "
        "UNETR its decoder too, for `predict`; a file takes every tensor.",
        examples=(
            "mim3d convert unetr.pt --out runs/unetr --segmenter.modality ct "
            "--segmenter.window_hu -175,250",
            "mim3d convert mae_vit_base.pth --out runs/mae --inflate z --encoder.channels 1",
            "mim3d convert encoder.pt --out runs/converted --encoder.preset small",
            "mim3d convert last.ckpt --out weights.safetensors --section state_dict",
            "mim3d convert model.pth --out runs/theirs --key_map theirs.yaml --dry_run",
        ),
        run=calls.run_convert,
        config=ConvertConfig,
        positionals=(Positional("CHECKPOINT", "the file of weights"),),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "export": Verb(
        summary="from a run or a store to what other programs read",
        story="A run becomes a state dict that MONAI loads strictly (`monai`; rotary positions "
        "have no place there), a program that needs none of our code (`onnx`, `torch-export`), or "
        "a folder in the Hugging Face layout with a model card filled from the run "
        "(`hub-folder`), which `--init`, `VolumeViT.load` and `UNETR.load` take by its path. A "
        "store becomes a raw data set of nnU-Net (`nnunet`). What was written is "
        "compared with the network before it is kept.",
        examples=(
            "mim3d export runs/finetune-hippocampus --format onnx --out segmenter.onnx",
            "mim3d export runs/pretrain-hippocampus --format hub-folder --out hub/hippocampus",
            "mim3d export runs/mimmed3d_mae_btcv --format monai --out encoder.safetensors",
            "mim3d export stores/hippocampus --format nnunet --out nnUNet_raw/Dataset004_Hippo",
        ),
        run=calls.run_export,
        config=ExportConfig,
        positionals=(Positional("PATH", "a run, or a store"),),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "embed": Verb(
        summary="from any run and scans or a store to features for other programs",
        story="Writes what a run's encoder knows of volumes: a row of features for each volume, "
        "and for each patch with where its middle lies in millimetres. An `.h5` keeps both, a "
        "`.csv` one of them. Inputs are prepared as the run's training was.",
        examples=(
            "mim3d embed runs/pretrain-hippocampus stores/hippocampus --out features.h5",
            "mim3d embed runs/pretrain-hippocampus scans/ --out features.csv",
            "mim3d embed runs/mine store --out patches.csv --level patches --part validation",
        ),
        run=calls.run_embed,
        config=EmbedConfig,
        positionals=(
            Positional("RUN", "a run that was pre-trained, fine-tuned or converted"),
            Positional("INPUT", "stores, files, DICOM folders, or anything `prepare` takes",
                       many=True),
        ),
        switches=WRITES | {"config", "json"},
        needs_out=True,
    ),
    "probe": Verb(
        summary="what a checkpoint is worth: k-NN, linear, frozen, LoRA and full, side by side",
        story="Reads the encoder of any run on a store with labels or targets: nearest neighbours "
        "and a linear map of frozen features, a decoder or head on the frozen encoder, low-rank "
        "adapters, full fine-tuning. Beside them the same readers of random weights and of raw "
        "voxels. An inner split by subject of the training list judges, with intervals; "
        "`--judge validation` is for a report. The same command goes on.",
        examples=(
            "mim3d probe runs/pretrain-hippocampus --store stores/hippocampus",
            "mim3d probe runs/mine --store stores/adrenal --readers knn,linear",
            "mim3d probe runs/mine --store stores/liver --config my.yaml --steps 2000",
        ),
        run=calls.run_probe,
        config=ProbeConfig,
        positionals=(Positional("RUN", "a run that was pre-trained, fine-tuned or converted"),),
        switches=WRITES | {"config", "json"},
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
        run=calls.run_plan,
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
        run=calls.run_benchmark,
        config=BenchmarkConfig,
        positionals=(
            Positional("KIND", "`throughput` or `convergence`"),
            Positional(
                "CONFIG", "`convergence`: a YAML file that lists the arms, or `few_labels`", least=0
            ),
        ),
        switches=frozenset({"out", "dry_run", "config", "json"}),
    ),
}  # fmt: skip
