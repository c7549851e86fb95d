"""What an arm may say, what it takes from the two base configs, and what is refused."""

from __future__ import annotations

import pytest
from small_benchmark import write_benchmark

from mim3d.config.reading import read_config
from mim3d.config.verbs import BenchmarkConfig, PretrainConfig
from mim3d.foundation.errors import ConfigError
from mim3d.workflows.convergence.arms import kind_of, read_arms, reference_of


def arms_of(folder, text, **settings):
    path = write_benchmark(folder, "stores/any", text, **settings)
    return {
        arm.name: arm for arm in read_arms(path, read_config(path, BenchmarkConfig).convergence)
    }


def test_arms_keep_their_order_and_change_only_what_they_say(tmp_path):
    arms = arms_of(
        tmp_path,
        "  scratch: {}\n"
        "  mae:\n    pretrain: {objective: {mask_ratio: 0.5}}\n"
        "  simclr: {pretrain: {objective: {name: simclr}}, finetune: {optim: {lr: 0.25}}}\n"
        "  own: {finetune: {init: runs/elsewhere}}\n",
    )
    base = read_config(tmp_path / "pretrain.yaml", PretrainConfig)

    assert list(arms) == ["scratch", "mae", "simclr", "own"]
    assert [arm.kind for arm in arms.values()] == ["scratch", "masked", "contrastive", "other"]
    assert arms["scratch"].pretrain is None
    assert arms["mae"].pretrain.objective.mask_ratio == 0.5
    assert arms["mae"].pretrain.encoder == base.encoder
    assert arms["simclr"].finetune.optim.lr == 0.25
    assert arms["mae"].finetune == arms["scratch"].finetune
    assert arms["own"].finetune.init == "runs/elsewhere"
    for arm in arms.values():
        assert arm.finetune.data.store == "stores/any"
        assert arm.finetune.training.threads == 1


def test_an_arm_may_take_the_pre_trainings_of_another(tmp_path):
    arms = arms_of(
        tmp_path,
        "  scratch: {}\n"
        "  mae: {pretrain: {}}\n"
        "  mae-unetr: {pretrain_of: mae, finetune: {decoder: {name: unetr}}}\n"
        "  long: {pretrain: {training: {steps: 50}}, kind: other}\n",
    )

    assert [arm.before for arm in arms.values()] == [None, "mae", "mae", "long"]
    assert arms["mae-unetr"].kind == "masked"
    assert arms["mae-unetr"].pretrain is None
    assert [arm.keeps_steps for arm in arms.values()] == [False, False, False, True]
    assert arms["long"].kind == "other"


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (
            "  scratch: {}\n  mae:\n    pretrain:\n      objective:\n        nam: mae\n",
            r"`objective\.nam` in arm `mae` of `.*convergence\.yaml` line 15 is not a setting",
            "did you mean `objective.name`?",
        ),
        (
            "  mae: {pretrain: {optim: {lr: fast}}}\n",
            r"`optim\.lr` in arm `mae` of `.*yaml` line \d+ is `fast`, expected a number",
            None,
        ),
        (
            "  mae: {pretrain: {}, fintune: {}}\n",
            r"`fintune` in arm `mae` of `.*yaml` line \d+ is no setting of an arm",
            "did you mean `finetune`?",
        ),
        ("  mae: {pretrain: {}}\n  mae: {}\n", r"`arms\.mae` in .* was given before", None),
        ("  mae: {pretrain: {}, pretrain: {}}\n", r"`mae\.pretrain` in .* was given before", None),
        ("  a/b: {}\n", "cannot name an arm", None),
        (
            "  a: {finetune: {task: classification}}\n",
            r"`task: classification` in arm `a` of .* cannot be judged: the benchmark measures",
            "leave it out, so that it is `segmentation`; `mim3d probe` and `finetune` with "
            "`data.fold` compare classifiers",
        ),
        (
            "  a: {pretrain_of: mae}\n",
            "names `mae` in `pretrain_of`, which is no arm",
            "arms with one: there is none",
        ),
        ("  mae: {pretrain: {}}\n  a: {total_time_of: a}\n", "names `a` in `total_time_of`", None),
        ("  mae: {pretrain: {}, finetune: {init: runs/a}}\n", "sets `finetune.init` too", None),
        (
            "  simmim: {pretrain: {}}\n",
            "`convergence.budget_arm` is `mae`, which is no arm",
            "arms with one: `simmim`",
        ),
        (
            "  mae: {pretrain: {encoder: {patch: [8, 8, 4]}}}\n",
            r"has `encoder.patch` \(8, 8, 4\) in its pre-training and \(4, 4, 4\) in",
            "say it under `pretrain` and `finetune` alike, or add `init_adapt: [patch]` under "
            "`finetune`",
        ),
        ("  mae: {kind: mask, pretrain: {}}\n", "`kind` in .* is `mask`, expected one of", None),
        ("  {}\n", "lists no arms", None),
        (
            "  mae: {pretrain: {}}\n  long: {total_time_of: mae}\n"
            "  own: {finetune: {init: runs/a}, kind: scratch}\n",
            "lists no arm from scratch",
            "add `scratch: {}` below `arms:`",
        ),
        (
            "  scratch: {}\n  mae: {against: sratch, pretrain: {}}\n",
            "arm `mae` names `sratch` in `against`, which is no other arm",
            "other arms: `scratch`",
        ),
        ("  scratch: {against: scratch}\n", "names `scratch` in `against`", None),
        ("  scratch: {budget: steps}\n", "says `budget` and has no section `pretrain`", None),
        (
            "  mae: {budget: steps, pretrain: {}}\n",
            "says `budget` and is the budget's own arm",
            "leave `budget` out",
        ),
        (
            "  mae: {pretrain: {}}\n  a: {budget: flop, pretrain: {training: {steps: 3}}}\n",
            "says `budget` and says its steps itself",
            None,
        ),
        ("  mae: {budget: time, pretrain: {}}\n", "`budget` in .* is `time`, expected", None),
    ],
)
def test_a_wrong_arm_is_one_sentence(tmp_path, text, message, remedy):
    with pytest.raises(ConfigError, match=message) as caught:
        arms_of(tmp_path, text)

    if remedy:
        assert caught.value.remedy == remedy


OWN = [
    ("pretrain", "data", "labels: 5", "`convergence.labels`"),
    ("pretrain", "data", "fold: 1", "`convergence.folds`"),
    ("pretrain", "data", "inner_fold: 1", "`convergence.rates`"),
    ("pretrain", "training", "seed: 7", "`convergence.pretraining_seeds`"),
    ("finetune", "data", "labels: 0.5", "`convergence.labels`"),
    ("finetune", "data", "fold: 1", "`convergence.folds`"),
    ("finetune", "data", "inner_fold: 0", "`convergence.rates`"),
    ("finetune", "training", "seed: 7", "`convergence.replicates`"),
    ("finetune", "training", "validate_every: 5", "`convergence.points`"),
    ("finetune", "training", "validate_at: [3, 5]", "`convergence.points`"),
]


@pytest.mark.parametrize(("verb", "section", "line", "setting"), OWN)
def test_what_the_benchmark_sets_is_refused_in_an_arm(tmp_path, verb, section, line, setting):
    key = f"{section}.{line.partition(':')[0]}"
    other = f"  other: {{{verb}: {{{section}: {{{line}}}}}}}\n"
    arms = "  scratch: {}\n  mae: {pretrain: {}}\n" + other

    with pytest.raises(
        ConfigError, match=rf"`{key}` in arm `other` of `.*convergence\.yaml` line 13"
    ) as caught:
        arms_of(tmp_path, arms)

    assert setting in caught.value.remedy


@pytest.mark.parametrize(("verb", "section", "line", "setting"), OWN)
def test_what_the_benchmark_sets_is_refused_in_a_base_config(
    tmp_path, verb, section, line, setting
):
    path = write_benchmark(tmp_path, "stores/any", "  scratch: {}\n  mae: {pretrain: {}}\n")
    base = tmp_path / f"{verb}.yaml"
    base.write_text(base.read_text().replace(f"{section}: {{", f"{section}: {{{line}, "))

    key = f"{section}.{line.partition(':')[0]}"
    with pytest.raises(ConfigError, match=rf"`{key}` in `.*{verb}\.yaml`") as caught:
        read_arms(path, read_config(path, BenchmarkConfig).convergence)

    assert setting in caught.value.remedy


def test_a_base_config_may_not_say_where_encoders_come_from(tmp_path):
    path = write_benchmark(tmp_path, "stores/any", "  scratch: {}\n")
    settings = read_config(path, BenchmarkConfig).convergence
    base = tmp_path / "finetune.yaml"
    recipe = base.read_text()

    base.write_text(recipe + "init: none\n")
    assert read_arms(path, settings)[0].is_plain
    base.write_text(recipe + "init: runs/elsewhere\n")
    with pytest.raises(ConfigError, match=r"`init` in `.*finetune\.yaml` would be replaced"):
        read_arms(path, settings)


def test_what_another_setting_decides_is_refused(tmp_path):
    rate = "  scratch: {finetune: {optim: {lr: 0.5}}}\n"
    long = (
        "  scratch: {}\n  mae: {pretrain: {}}\n"
        "  long: {total_time_of: mae, finetune: {training: {steps: 90}}}\n"
    )

    assert arms_of(tmp_path, rate)["scratch"].finetune.optim.lr == 0.5
    with pytest.raises(ConfigError, match=r"`optim\.lr` in arm `scratch`") as caught:
        arms_of(tmp_path, rate, rates=[0.1, 0.2])
    assert "`convergence.rates`" in caught.value.remedy
    with pytest.raises(ConfigError, match=r"`optim\.warmup_steps` in arm `scratch`"):
        arms_of(
            tmp_path,
            "  scratch: {finetune: {optim: {warmup_steps: 7}}}\n",
            rates=[0.1],
            warmups=[0, 5],
        )
    with pytest.raises(ConfigError, match=r"`training\.steps` in arm `long`"):
        arms_of(tmp_path, long)


def test_the_first_plain_arm_is_the_reference_and_an_arm_may_name_another(tmp_path):
    arms = arms_of(
        tmp_path,
        "  long: {total_time_of: mae}\n"
        "  mae: {pretrain: {}, against: small}\n"
        "  loaded: {finetune: {init: runs/a}, kind: scratch}\n"
        "  small: {}\n"
        "  scratch: {}\n",
    )

    assert reference_of(arms.values()) == "small"
    assert [arm.against for arm in arms.values()] == [None, "small", None, None, None]


def test_a_base_config_that_is_not_named_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="`convergence.pretrain` does not say which config"):
        arms_of(tmp_path, "  mae: {pretrain: {}}\n", pretrain="null")


def test_the_arms_are_no_setting_but_a_misspelt_section_still_is(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("convergence: {points: 20}\narms: {scratch: {}}\n")
    assert read_config(path, BenchmarkConfig).convergence.points == 20

    path.write_text("convergence: {arms: {}}\n")
    with pytest.raises(ConfigError, match="`convergence.arms`"):
        read_config(path, BenchmarkConfig)


@pytest.mark.parametrize(
    ("task", "kind"),
    [("mae", "masked"), ("smit", "masked"), ("dino", "contrastive"), ("denoising", "other")],
)
def test_a_pretext_task_tells_the_kind_of_its_arm(task, kind):
    assert kind_of(task) == kind
