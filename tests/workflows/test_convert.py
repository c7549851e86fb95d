"""`mim3d convert`: tensors out of other programs' checkpoints, whole, by name, and nothing else."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mim3d.config.convert import ConversionConfig, ConvertConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError, UserError, WeightsError
from mim3d.foundation.reporting import Silent
from mim3d.models.foreign_tables import Refusal, plain_tensors
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_config, load_weights, save_weights
from mim3d.training.checkpoints import weights_digest
from mim3d.workflows.convert import convert, read_key_map
from mim3d.workflows.foreign import Opened
from mim3d.workflows.info import info
from mim3d.workflows.run_weights import encoder_of, initial_record, start_from

SMALL = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=1)
quiet = functools.partial(convert, reporter=Silent())


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return VolumeViT(SMALL).state_dict()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are opened here, without starting a process: two seconds less a test."""

    def opened(path: Path, config: ConversionConfig) -> Opened:
        try:
            content = torch.load(path, weights_only=True)
            found = plain_tensors(content, config.section or "")
            return Opened(found.tensors, found.left)
        except Refusal as reason:
            raise WeightsError(str(reason)) from None

    monkeypatch.setattr("mim3d.workflows.foreign.unpickled", opened)


def test_a_run_of_a_converted_encoder_serves_init(state: dict[str, Tensor], tmp_path: Path) -> None:
    source, run = tmp_path / "theirs.pt", tmp_path / "run"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, source)

    result = quiet(str(source), out=str(run), config=ConvertConfig(encoder=SMALL))

    encoder = VolumeViT(SMALL)
    start_from(encoder, str(run), "last", Silent())
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert encoder_of(run) == SMALL
    assert initial_record(str(run))["encoder_digest"] == weights_digest(state)
    assert f"{len(state)} of {len(state)} tensors taken; the encoder is whole" in result.text
    assert "taken     module.norm.bias as encoder.norm.bias, 24" in result.text.splitlines()
    assert "converted run, done" in info(str(run)).text
    with pytest.raises(UserError, match="finished run"):
        quiet(str(source), out=str(run), config=ConvertConfig(encoder=SMALL))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_takes_every_tensor_under_its_new_name(is_zip: bool, tmp_path: Path) -> None:
    tensors = {"net.a": torch.arange(6).view(2, 3).T, "net.b": torch.ones(2).bfloat16(),
               "head.c": torch.tensor(True)}  # fmt: skip
    torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    (tmp_path / "map.yaml").write_text("strip: [net.]\ndrop: [head.]\nrename:\n  b: bias\n")
    config = ConvertConfig(convert=ConversionConfig(key_map=str(tmp_path / "map.yaml")))

    result = quiet(str(tmp_path / "w.pth"), out=str(tmp_path / "o.safetensors"), config=config)

    found = load_weights(tmp_path / "o.safetensors").tensors
    assert found.keys() == {"a", "bias"}
    assert torch.equal(found["a"], tensors["net.a"])
    assert found["bias"].dtype == torch.bfloat16
    assert result.facts["keys"] == {"net.a": "a", "net.b": "bias", "head.c": None}
    assert "left out  head.c, by the key map" in result.text
    with pytest.raises(ConfigError, match="there already"):
        quiet(str(tmp_path / "w.pth"), out=str(tmp_path / "o.safetensors"), config=config)


def test_safetensors_are_taken_without_a_process_and_checked_where_the_encoder_is_said(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_weights(tmp_path / "w.safetensors", {f"encoder.{k}": v for k, v in state.items()}, {})
    out = tmp_path / "o.safetensors"

    quiet(str(tmp_path / "w.safetensors"), out=str(out), config=ConvertConfig(encoder=SMALL),
          said={"encoder.width"})  # fmt: skip

    weights = load_weights(out)
    assert encoder_config(weights.metadata) == SMALL
    assert weights_digest(weights.tensors) == weights_digest(
        {f"encoder.{k}": v for k, v in state.items()}
    )


def test_an_encoder_that_does_not_fit_whole_is_refused_key_by_key(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    lacking = {k: v for k, v in state.items() if k != "norm.bias"}
    save_weights(tmp_path / "w.safetensors", lacking, {})

    with pytest.raises(WeightsError, match="1 of 28 encoder tensors") as error:
        quiet(str(tmp_path / "w.safetensors"), out=str(tmp_path / "run"),
              config=ConvertConfig(encoder=SMALL))  # fmt: skip

    assert "`norm.bias` is missing, expected 24" in str(error.value.remedy)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("in_process")
def test_a_dry_run_reports_and_writes_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")

    result = quiet(str(tmp_path / "w.pt"), out=str(tmp_path / "o.safetensors"), dry_run=True)

    assert "taken     a, 2" in result.text
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


class Planted:
    """Makes a folder where a pickle is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_with_code_is_refused_by_name_and_nothing_runs(
    is_zip: bool, tmp_path: Path
) -> None:
    content = {"state_dict": {"a": torch.ones(2)}, "callback": Planted(tmp_path / "executed")}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=is_zip)

    with pytest.raises(WeightsError, match=r"more than tensors \(`(posix|os)\.mkdir`\)"):
        quiet(str(tmp_path / "w.ckpt"), out=str(tmp_path / "o.safetensors"))

    assert [path.name for path in tmp_path.iterdir()] == ["w.ckpt"]


def test_the_report_names_what_was_left_out(tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.ones(2), "layers": [torch.ones(3), torch.ones(1)]}}
    torch.save(content, tmp_path / "w.pt")

    result = quiet(str(tmp_path / "w.pt"), out=str(tmp_path / "o.safetensors"))

    assert "left out  layers, 2 tensors under no name of the table taken" in result.text
    assert "1 of 1 tensors taken; 2 beside the table left out" in result.text
    assert result.facts["left_out"] == {"layers": 2}
    assert load_weights(tmp_path / "o.safetensors").metadata == {}


def test_tensors_outside_of_a_section_of_safetensors_are_reported(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"t.a": torch.ones(1), "h": torch.ones(1)}, {})
    config = ConvertConfig(convert=ConversionConfig(section="t"))

    result = quiet(str(tmp_path / "w.safetensors"), out=str(tmp_path / "o.safetensors"),
                   config=config)  # fmt: skip

    assert "left out  h, a tensor under no name of the table taken" in result.text


def test_the_reason_comes_through_whatever_a_library_prints_before_it(tmp_path: Path) -> None:
    """Protocol 4 makes torch warn of a protocol it does not know, in several lines."""
    content = {"a": torch.ones(2), "b": Planted(tmp_path / "executed")}
    torch.save(content, tmp_path / "w.pt", pickle_protocol=4)

    with pytest.raises(WeightsError, match=r"it holds more than tensors \(`posix\.mkdir`\)"):
        quiet(str(tmp_path / "w.pt"), out=str(tmp_path / "o.safetensors"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("regex: a\n", "`regex`.*not part of a key map"),
        ("rename:\n  a: b\n  a: c\n", "given before"),
        ("strip: 3\n", "expected a list of texts"),
        ("rename: [a, b]\n", "lines of `key: value`"),
        ("rename:\n  a: [b]\n", "expected text"),
        ("!!python/object/apply:os.mkdir [x]\n", "has a tag"),
    ],
)
def test_a_key_map_is_read_strictly(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(text)

    with pytest.raises(ConfigError, match=why):
        read_key_map(tmp_path / "map.yaml")
