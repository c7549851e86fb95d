"""A command line is taken apart, or refused in one sentence."""

from __future__ import annotations

import pytest

from mim3d.cli.aliases import ALIASES
from mim3d.cli.line import read_line
from mim3d.cli.verbs import VERBS
from mim3d.config.tree import settings
from mim3d.foundation.errors import ConfigError


def read(line):
    name, *arguments = line.split()
    return read_line(name, VERBS[name], arguments)


@pytest.mark.parametrize(
    "line",
    [
        "pretrain c.yaml --data.crop_size 96,96,96 --training.seed 3 --out runs/a",
        "pretrain --data.crop-size=96,96,96 c.yaml --seed=3 -o runs/a",
        "pretrain -o runs/a --data.crop_size=96,96,96 --seed 3 -- c.yaml",
    ],
)
def test_the_same_command_can_be_written_in_several_ways(line):
    taken = read(line)

    assert taken.words == {"CONFIG": ["c.yaml"]}
    assert taken.settings == {"data.crop_size": "96,96,96", "training.seed": "3"}
    assert taken.switches == {"out": "runs/a"}


def test_several_inputs_keep_their_order():
    taken = read("predict runs/a b.nii.gz --out d a.nii.gz")

    assert taken.words == {"RUN": ["runs/a"], "INPUT": ["b.nii.gz", "a.nii.gz"]}


def test_a_truth_value_may_stand_alone_or_be_said():
    assert read("prepare s --keep-paths --out d").settings == {"prepare.keep_paths": "true"}
    assert read("prepare s --keep_paths false").settings == {"prepare.keep_paths": "false"}
    assert read("prepare --keep_paths s").words == {"SOURCE": ["s"]}


def test_a_value_may_begin_with_a_minus():
    assert read("prepare s --prepare.window_hu -1000,1000").settings == {
        "prepare.window_hu": "-1000,1000"
    }


@pytest.mark.parametrize(
    ("verb", "short", "key"),
    [
        ("pretrain", "seed", "training.seed"),
        ("demo", "seed", "seed"),
        ("pretrain", "workers", "data.workers"),
        ("prepare", "workers", "prepare.workers"),
        ("prepare", "spacing_mm", "prepare.spacing_mm"),
        ("prepare", "modality", "prepare.modality"),
        ("finetune", "device", "training.device"),
        ("predict", "device", "device"),
        ("finetune", "init", "init"),
        ("finetune", "fold", "data.fold"),
        ("evaluate", "allow_missing", "evaluation.allow_missing"),
    ],
)
def test_short_names_stand_for_settings(verb, short, key):
    taken = read_line(
        verb, VERBS[verb], [f"--{short}=1", "a", "b"][: 1 + len(VERBS[verb].positionals)]
    )

    assert taken.settings == {key: "1"}


def test_every_short_name_stands_for_a_setting_that_exists():
    known = set().union(*(settings(verb.config) for verb in VERBS.values() if verb.config))

    assert {target for targets in ALIASES.values() for target in targets} <= known


@pytest.mark.parametrize(
    ("line", "message", "remedy"),
    [
        (
            "finetune c --optim.weight_decy 3",
            "`--optim.weight_decy` is not an option of `mim3d finetune`",
            "did you mean `--optim.weight_decay`?",
        ),
        ("finetune c --lr 3", "`--lr` is not an option", "did you mean `--optim.lr`?"),
        ("finetune c --overwrit", "`--overwrit` is not an option", "did you mean `--overwrite`?"),
        ("finetune c --optim 3", "`--optim` is a section of settings", "write `--optim.KEY VALUE`"),
        (
            "doctor --dry_run",
            "`--dry_run` is not an option of `mim3d doctor`",
            "`mim3d doctor --help`",
        ),
        ("finetune c -x", "`-x` is not an option", "`mim3d finetune --help`"),
        ("predict -i a.nii.gz -o d", "`-i` is not an option", "inputs stand without it"),
        ("pretrain c --seed", "`--seed` needs a value", "write `--seed VALUE`"),
        ("pretrain c --seed --overwrite", "`--seed` needs a value", "write `--seed VALUE`"),
        ("pretrain c --init=", "`--init=` has no value", "write `--init null`"),
        ("pretrain c --seed 1 --training.seed 2", "`--training.seed` is given twice", "keep one"),
        ("pretrain c --overwrite=no", "`--overwrite` takes no value", None),
        ("pretrain", "`mim3d pretrain` needs CONFIG", "for example `mim3d pretrain"),
        ("predict runs/a", "`mim3d predict` needs INPUT", "for example `mim3d predict"),
        ("pretrain c --data.crop_size 96 96 96", "`96` is one argument too many", "96,96,96"),
    ],
)
def test_a_wrong_command_names_what_was_meant(line, message, remedy):
    with pytest.raises(ConfigError) as caught:
        read(line)

    assert message in str(caught.value)
    assert (remedy is None) == (caught.value.remedy is None)
    assert remedy is None or remedy in str(caught.value.remedy)


def test_help_asks_for_no_arguments():
    assert "help" in read("predict --help").switches
