"""Pre-training on several stores: what it is told, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mim3d.cli.line import read_line
from mim3d.cli.options import typed_settings
from mim3d.cli.verbs import VERBS
from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig
from mim3d.config.plan import PlanConfig, PretrainPlanConfig
from mim3d.config.reading import read_config
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import (
    FinetuneConfig,
    PreparationConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.config.writing import to_mapping
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.assembly import resolved_encoder, store_of
from mim3d.workflows.convergence.follows import store_signs
from mim3d.workflows.finetune import finetune
from mim3d.workflows.plan.subject import subject_of
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.probed_crops import labelled_crops
from mim3d.workflows.run_record import load_preparation

RULES = {
    "coarse": PhantomRule(shape=(22, 18, 14), spacing_mm=(1.5, 1.5, 3.0), organs=1),
    "fine": PhantomRule(shape=(18, 22, 16), spacing_mm=(0.2, 0.2, 0.3), organs=2, modality="ct"),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("stores")
    for number, (name, rule) in enumerate(RULES.items()):
        subjects = [f"{name} {subject}" for subject in range(4 + number)]
        make_cohort(folder / f"cohort-{name}", seed=number, training=3 + number, validation=1,
                    rule=rule, subjects=subjects)  # fmt: skip
        config = PrepareConfig(PreparationConfig(workers=0))
        prepare(str(folder / f"cohort-{name}"), out=str(folder / name), config=config,
                reporter=Silent())  # fmt: skip
    return str(folder / "coarse"), str(folder / "fine")


@pytest.fixture
def config(stores: tuple[str, str]) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(stores=stores, store_weights="equal", crop_size=(16, 16, 12)),
        encoder=EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4)),
        objective=PretextConfig(decoder_width=24, decoder_depth=1, decoder_heads=2),
        training=TrainingConfig(steps=2, batch_size=4, pictures_every=0, threads=1, device="cpu",
                                precision="fp32"),
        probes=ProbesConfig(every=0),
    )  # fmt: skip


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += f"{text}\n"


# What it keeps


def test_a_run_says_and_keeps_what_it_learned_from_in_each_store(config, stores, tmp_path):
    heard = Heard()

    pretrain(config, out=str(tmp_path / "run"), reporter=heard)

    assert "7 volumes of `phantom 0` (3), `phantom 1` (4): 2 steps" in heard.text
    record = load_preparation(tmp_path / "run")
    opened = {store.name: store for store in map(open_store, stores)}
    assert record["trained_on"] == {
        f"{name}/{case_id}": store.source_hash(case_id)
        for name, store in opened.items()
        for case_id in store.ids("training")
    }
    assert record["preparation"] == {name: store.preparation for name, store in opened.items()}
    assert record["fingerprint"] == {name: store.fingerprint for name, store in opened.items()}
    written = read_config(tmp_path / "run" / "config.yaml", PretrainConfig)
    assert written.data.stores == stores
    # Done work is not done again, and the weights serve a fine-tuning on one of the stores.
    assert "is done" in pretrain(config, out=str(tmp_path / "run"), reporter=Silent()).text
    tuned = finetune(
        FinetuneConfig(
            data=DataConfig(store=stores[1], crop_size=(16, 16, 12)),
            decoder=replace(FinetuneConfig().decoder, name="light"),
            training=replace(config.training, steps=1, batch_size=2),
            init=str(tmp_path / "run"),
        ),
        out=str(tmp_path / "tuned"),
        said=(),
        reporter=Silent(),
    )
    assert tuned.facts["training_cases"] == 4


def test_a_run_goes_on_only_while_no_store_has_changed(config, stores, tmp_path):
    copies = []
    for store in stores:
        copy = tmp_path / Path(store).name
        copy.mkdir()
        for path in Path(store).rglob("*"):
            target = copy / path.relative_to(store)
            target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
        copies.append(str(copy))
    config = replace(config, data=replace(config.data, stores=tuple(copies)))
    run = tmp_path / "run"
    pretrain(config, out=str(run), reporter=Silent())
    longer = replace(config, training=replace(config.training, steps=3))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("steps: 2", "steps: 3")
    )
    noisier = replace(RULES["fine"], noise=0.1)
    make_cohort(tmp_path / "other", seed=1, training=4, validation=1, rule=noisier,
                subjects=[f"fine {subject}" for subject in range(5)])  # fmt: skip
    prepare(str(tmp_path / "other"), out=copies[1], overwrite=True, reporter=Silent(),
            config=PrepareConfig(PreparationConfig(workers=0)))  # fmt: skip

    with pytest.raises(ConfigError, match="the store is not the one that run") as caught:
        pretrain(longer, out=str(run), reporter=Silent())

    assert caught.value.code == "store-differs"


def test_the_order_of_stores_is_part_of_the_run(config, stores, tmp_path):
    pretrain(config, out=str(tmp_path / "run"), reporter=Silent())
    turned = replace(config, data=replace(config.data, stores=stores[::-1]))

    with pytest.raises(UserError, match=r"data\.stores"):
        pretrain(turned, out=str(tmp_path / "run"), reporter=Silent())


# What it is told


def test_stores_are_a_list_in_a_file_and_parted_by_commas_on_the_line(tmp_path):
    (tmp_path / "several.yaml").write_text("data: {stores: [stores/a, 'stores/b, c']}\n")
    from_file = read_config(tmp_path / "several.yaml", PretrainConfig)
    verb = VERBS["pretrain"]
    line = read_line("pretrain", verb, ["any.yaml", "--data.stores", "stores/a,stores/b"])

    assert from_file.data.stores == ("stores/a", "stores/b, c")
    assert tuple(typed_settings(verb, line)["data.stores"]) == ("stores/a", "stores/b")
    assert to_mapping(from_file)["data"]["stores"] == ["stores/a", "stores/b, c"]


@pytest.mark.parametrize(
    ("data", "several", "what"),
    [
        ({"stores": 2}, False, "`data.stores` is for pre-training alone"),
        ({"stores": 2, "store": "any"}, True, "`data.store` and `data.stores` are both set"),
        ({"store": "any", "store_weights": "equal"}, True, "needs several `data.stores`"),
        ({"stores": 1, "store_weights": "equal"}, True, "needs several `data.stores`"),
        ({}, True, "no store is named"),
    ],
)
def test_what_cannot_be_meant_is_refused(stores, data, several, what):
    if "stores" in data:
        data = {**data, "stores": stores[: data["stores"]]}

    with pytest.raises(ConfigError, match=what):
        store_of(DataConfig(**data), several=several)


def test_a_store_without_a_case_to_train_on_is_named(config, stores, tmp_path):
    make_cohort(tmp_path / "cohort", seed=5, training=2, validation=0, rule=RULES["coarse"],
                subjects=["coarse 3", "fine 4"])  # fmt: skip
    settings = PreparationConfig(workers=0, validation_fraction=0.0)
    prepare(str(tmp_path / "cohort"), out=str(tmp_path / "third"), reporter=Silent(),
            config=PrepareConfig(settings))  # fmt: skip
    third = (*stores, str(tmp_path / "third"))

    with pytest.raises(UserError, match="no case to pre-train on in the store `phantom 5`"):
        pretrain(replace(config, data=replace(config.data, stores=third)), dry_run=True,
                 out=str(tmp_path / "run"), reporter=Silent())  # fmt: skip


# Who else knows of them


def test_a_plan_counts_the_volumes_of_all_stores(config):
    planned = PretrainPlanConfig(
        data=config.data, encoder=config.encoder, objective=config.objective,
        training=config.training, plan=PlanConfig(measure=False),
    )  # fmt: skip

    subject = subject_of(planned)

    assert subject.cohort.volumes == 7
    assert len(subject.cohort.known_sizes) == 7
    assert "every case is drawn from equally often" in subject.assumptions


def test_probes_take_labels_of_the_first_store_where_classes_differ(config):
    store = store_of(config.data, several=True)
    probes = replace(config.probes, every=1, subjects=3, crops=6)

    parts = labelled_crops(store, replace(config, probes=probes))

    assert parts is not None
    names = {name for part in parts for batch in part.batches for name in batch.case_ids}
    assert {name.partition("/")[0] for name in names} == {"phantom 0"}


def test_a_benchmark_notices_a_change_in_any_of_its_stores(config, stores):
    from mim3d.workflows.convergence import follows

    assert follows._signs(config.data) == {store: store_signs(store) for store in stores}
    assert follows._signs(DataConfig(store=stores[0])) == store_signs(stores[0])


def test_the_hash_of_a_case_is_the_same_as_in_its_own_store(config, stores):
    joined = store_of(config.data, several=True)
    alone = {open_store(store).source_hash(case) for store in stores
             for case in open_store(store).cases}  # fmt: skip

    assert {joined.source_hash(case) for case in joined.cases} == alone


def test_contrasts_by_name_need_the_same_names_in_all_stores(config, stores):
    by_name = replace(config.encoder, embedding="per_contrast")
    joined = store_of(config.data, several=True)

    with pytest.raises(ConfigError, match="names, which differ: `phantom 0` has MRI, `phantom 1`"):
        resolved_encoder(by_name, config.data, joined)
    assert resolved_encoder(config.encoder, config.data, joined).channels == 1
    alone = resolved_encoder(by_name, DataConfig(store=stores[0]), open_store(stores[0]))
    assert alone.contrasts == ("MRI",)
