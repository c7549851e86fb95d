"""Fine-tuning between frozen and full: what learns, what is written, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fakes import FakeFeed, training_config
from safetensors.torch import load_file
from small_benchmark import make_store
from torch import Tensor

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.segmentation import Segmentation
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.standing import FitResult
from mim3d.training.validation import Validator
from mim3d.workflows.adapting import adapt_encoder, counts_told, parameter_counts
from mim3d.workflows.finetune import finetune
from mim3d.workflows.info import info
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.memory import training_need
from mim3d.workflows.pretrain import pretrain

STEPS, WIDTH, DEPTH, RANK = 6, 24, 4, 2
ADAPTERS = DEPTH * RANK * (4 * 2 * WIDTH + 2 * (WIDTH + 4 * WIDTH))
"""Of qkv (three), proj and mlp (two), r (i + o) each."""
LORA = OptimConfig(
    lr=0.02, warmup_steps=2, ema=0.8, layer_decay=0.9, adapt="lora", lora_rank=RANK, lora_scale=2.0
)
ENCODER = EncoderConfig(
    width=WIDTH, depth=DEPTH, heads=2, patch=(4, 4, 4), channels=1, drop_path=0.2,
    default_spacing_mm=(1.0, 1.0, 1.5),
)  # fmt: skip


class Told(Silent):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


class LabelledFeed(FakeFeed):
    """Crops with three different sides whose labels follow from their voxels."""

    def batch(self, step: int, indices: range) -> CropBatch:
        draws = [generator(self.seed, step, i, "crop").normal(size=(1, 12, 8, 4)) for i in indices]
        voxels = torch.stack([torch.from_numpy(draw).float() for draw in draws])
        affine = torch.eye(4, dtype=torch.float64).expand(len(indices), 4, 4)
        names = tuple(f"case_{i}" for i in indices)
        labels = (voxels[:, 0] > 0.3).to(torch.uint8)
        return CropBatch(voxels, affine, names, torch.tensor(list(indices)), labels=labels)


def config_of(optim: OptimConfig = LORA, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(
        data=DataConfig(crop_size=(12, 8, 4)),
        encoder=ENCODER,
        decoder=DecoderConfig(name="light", feature_size=4),
        optim=optim,
        training=training_config(steps=STEPS, checkpoint_every=3, log_every=1),
        init="somewhere",
        **changes,
    )


def network_of(config: FinetuneConfig) -> UNETR:
    torch.manual_seed(2)
    return UNETR(VolumeViT(config.encoder), 2, config.decoder)


def task_of(config: FinetuneConfig) -> Segmentation:
    network = network_of(config)
    adapt_encoder(network.encoder, config, Silent())
    return Segmentation(network, SegmentationConfig(), 2, values=(0, 1))


class Killed(BaseException):
    """What `kill -9` looks like from inside."""


def train(
    folder: Path,
    optim: OptimConfig = LORA,
    *,
    dies_after: int | None = None,
) -> tuple[Segmentation, FitResult]:
    config, feed = config_of(optim), LabelledFeed(4)
    task, kept = task_of(config), LabelledFeed(4, seed=9).batch(0, range(4))

    def look(task: Task, moment: Moment) -> dict[str, float]:
        """Of one crop, all logits: a sum in which every weight shows."""
        if dies_after is not None and moment.step > dies_after:
            raise Killed
        assert isinstance(task, Segmentation)
        return {"logits": float(task.network(kept.voxels, kept.spacing_mm).double().sum())}

    with Run.create_or_continue(folder, {}) as run:
        done = fit(
            task, feed, optim, config.training, run, validators=[Validator("look", 1, look)],
            reporter=Silent(),
        )  # fmt: skip
    return task, done


def everything(folder: Path) -> dict[str, Tensor]:
    last = folder / "checkpoints" / "last"
    assert last.resolve().name == str(STEPS)
    written = load_file(last / "weights.safetensors")
    state = load_file(last / "state.safetensors")
    return state | {f"written/{name}": tensor for name, tensor in written.items()}


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mim3d.foundation.atomic.sync", lambda path: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Segmentation, FitResult]:
    folder = tmp_path_factory.mktemp("lora") / "run"
    return folder, *train(folder)


def test_a_killed_run_with_adapters_ends_with_an_undisturbed_ones_bits(
    undisturbed: tuple[Path, Segmentation, FitResult], tmp_path: Path
) -> None:
    """Seen to fail with adapters drawn from another seed and their moments not restored."""
    folder, _, whole = undisturbed
    with pytest.raises(Killed):
        train(tmp_path / "x", dies_after=4)

    _, done = train(tmp_path / "x")

    ours, theirs = everything(tmp_path / "x"), everything(folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert done.digest == whole.digest
    assert any(".down" in name and name.startswith("optimiser/") for name in theirs)


def test_adapters_and_decoder_learn_and_the_encoders_maps_stay_bit_for_bit(
    undisturbed: tuple[Path, Segmentation, FitResult],
) -> None:
    _, task, _ = undisturbed
    began = task_of(config_of()).state_dict()

    changed = {
        key for key, value in task.state_dict().items() if not torch.equal(began[key], value)
    }

    learning = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    # A norm before a norm gives its bias no gradient; nothing else may stand still.
    assert changed <= learning
    assert {name for name in learning if name.startswith("encoder.")} <= changed
    assert {name.rsplit(".", 1)[-1] for name in changed if name.startswith("encoder.")} == {
        "down", "up",
    }  # fmt: skip


def test_what_is_written_is_the_running_mean_of_the_adapters_added_to_plain_weights(
    undisturbed: tuple[Path, Segmentation, FitResult],
) -> None:
    folder, _, _ = undisturbed
    found = everything(folder)
    plain = network_of(config_of()).state_dict()
    assert {key.removeprefix("written/") for key in found if key.startswith("written/")} == set(
        plain
    )

    for block in range(DEPTH):
        for name, parts in [("attention.qkv", 3), ("mlp.narrow", 1)]:
            key = f"encoder.blocks.{block}.{name}"
            down, up = (found[f"mean/{key}.{part}"].double() for part in ("down", "up"))
            pairs = zip(up.chunk(parts), down.chunk(parts), strict=True)
            update = torch.cat([2.0 * one @ other for one, other in pairs])
            expected = plain[f"{key}.weight"].double() + update
            torch.testing.assert_close(
                found[f"written/{key}.weight"].double(), expected, rtol=1e-6, atol=1e-7
            )
            assert torch.equal(found[f"written/{key}.bias"], plain[f"{key}.bias"])


def test_the_last_validation_is_what_the_written_weights_give_bit_for_bit(
    undisturbed: tuple[Path, Segmentation, FitResult],
) -> None:
    folder, _, done = undisturbed
    network = network_of(config_of()).eval()
    written = load_file(folder / "checkpoints" / "last" / "weights.safetensors")
    network.load_state_dict(written, strict=True)
    kept = LabelledFeed(4, seed=9).batch(0, range(4))

    with torch.no_grad():
        found = float(network(kept.voxels, kept.spacing_mm).double().sum())

    assert found == done.validation["look"]["logits"]


def test_a_frozen_encoder_is_written_as_it_was(tmp_path: Path) -> None:
    task, _ = train(tmp_path / "x", replace(LORA, adapt="frozen"))

    written = load_file(tmp_path / "x" / "checkpoints" / "last" / "weights.safetensors")
    plain = network_of(config_of()).state_dict()
    for name, tensor in plain.items():
        assert torch.equal(written[name], tensor) == name.startswith("encoder.") or name.endswith(
            "bias"
        ), name
    state = load_file(tmp_path / "x" / "checkpoints" / "last" / "state.safetensors")
    assert not any(
        name.startswith(("optimiser/", "mean/")) and "/encoder." in name for name in state
    )
    assert parameter_counts(task)["trained_encoder_parameters"] == 0


@pytest.mark.parametrize(("word", "count"), [("full", None), ("frozen", 0), ("lora", ADAPTERS)])
def test_what_learns_is_counted_and_said(word: str, count: int | None) -> None:
    config = config_of(replace(LORA, adapt=word))  # type: ignore[arg-type]
    task = task_of(config)
    encoder, decoder = (
        sum(p.numel() for p in part.parameters())
        for part in (network_of(config).encoder, task.decoder)
    )
    count = encoder if count is None else count

    counts = parameter_counts(task)

    assert counts == {
        "parameters": encoder + decoder + (ADAPTERS if word == "lora" else 0),
        "trained_parameters": decoder + count,
        "trained_encoder_parameters": count,
    }
    assert f"{decoder + count:,} of {counts['parameters']:,}" in counts_told(counts, config)
    assert f"{count:,} of them in the encoder" in counts_told(counts, config)


def test_the_adapters_follow_from_the_seed_alone() -> None:
    config = config_of()
    other = replace(config, training=replace(config.training, seed=5))
    name = "encoder.blocks.1.mlp.widen.down"

    one, same, another = (task_of(each).state_dict()[name] for each in (config, config, other))

    assert torch.equal(one, same)
    assert not torch.equal(one, another)


def test_a_frozen_encoder_from_scratch_is_warned_of() -> None:
    told = Told()
    for word in ("full", "frozen", "lora"):
        config = replace(config_of(replace(LORA, adapt=word)), init="none")  # type: ignore[arg-type]
        adapt_encoder(network_of(config).encoder, config, told)

    assert len(told.warned) == 2
    assert "`optim.adapt frozen`" in told.warned[0]


def test_the_planner_knows_what_learns() -> None:
    needs = [
        training_need(replace(config_of(replace(LORA, adapt=word, ema=0.0)), init="none"))  # type: ignore[arg-type]
        for word in ("full", "lora", "frozen")
    ]

    encoder = sum(p.numel() for p in network_of(config_of()).encoder.parameters())
    # Weights and AdamW's two moments, 4 bytes each.
    assert needs[0].standing - needs[2].standing == pytest.approx(8 * encoder)
    assert needs[1].standing - needs[2].standing == pytest.approx(12 * ADAPTERS)
    assert needs[0].step > needs[1].step > needs[2].step


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("adapting"), subjects=6)


@pytest.fixture(scope="module")
def pretrained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PretrainConfig(
        data=DataConfig(store=str(store), crop_size=(16, 16, 12)),
        encoder=EncoderConfig(width=WIDTH, depth=DEPTH, heads=2, patch=(4, 4, 4)),
        training=TrainingConfig(
            steps=1, batch_size=2, precision="fp32", device="cpu", threads=1, pictures_every=0
        ),
    )
    folder = tmp_path_factory.mktemp("adapting") / "pretrained"
    pretrain(config, out=str(folder), reporter=Silent())
    return folder


def tuned(store: Path, pretrained: Path, folder: Path, optim: OptimConfig, told: Silent) -> None:
    config = FinetuneConfig(
        data=DataConfig(store=str(store), crop_size=(16, 16, 12)),
        decoder=DecoderConfig(name="light", feature_size=4),
        optim=optim,
        training=TrainingConfig(
            steps=2, batch_size=2, precision="fp32", device="cpu", threads=1, log_every=1
        ),
        init=str(pretrained),
    )
    finetune(config, out=str(folder), reporter=told)


def test_a_run_with_adapters_predicts_like_any_other(
    store: Path, pretrained: Path, tmp_path: Path
) -> None:
    told = Told()

    tuned(store, pretrained, tmp_path / "run", LORA, told)

    written = load_file(tmp_path / "run" / "checkpoints" / "last" / "weights.safetensors")
    began = load_file(pretrained / "checkpoints" / "last" / "weights.safetensors")
    maps = ("qkv.weight", "attention.out.weight", "widen.weight", "narrow.weight")
    for name, tensor in began.items():
        if name.startswith("encoder."):
            assert torch.equal(written[name], tensor) != name.endswith(maps), name
    network = load_segmenter(tmp_path / "run", device="cpu").network
    loaded = network.state_dict()
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained_encoder_parameters"] == ADAPTERS
    assert any(f"{ADAPTERS:,} of them in the encoder" in text for text in told.said)
    assert "adapters of rank 2 on qkv, proj, mlp" in info(str(tmp_path / "run")).text


def test_a_frozen_run_says_so(store: Path, pretrained: Path, tmp_path: Path) -> None:
    tuned(store, pretrained, tmp_path / "run", replace(LORA, adapt="frozen"), Silent())

    assert "frozen: none of it is trained" in info(str(tmp_path / "run")).text
    assert "all of it is trained" in info(str(pretrained)).text


def test_pre_training_refuses_to_leave_its_encoder(store: Path, tmp_path: Path) -> None:
    config = PretrainConfig(data=DataConfig(store=str(store)), optim=OptimConfig(adapt="lora"))

    with pytest.raises(ConfigError, match="`optim.adapt lora` is for fine-tuning"):
        pretrain(config, out=str(tmp_path / "x"), reporter=Silent(), dry_run=True)
