"""`mim3d export`: the right form for the right thing, and nothing written over."""

from __future__ import annotations

from pathlib import Path

import exporting
import pytest

from mim3d.cli.main import main
from mim3d.cli.verbs import VERBS
from mim3d.config.export import ExportConfig, GraphConfig
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.export.export import RUN_FORMATS, export
from mim3d.workflows.export.run import FORMS


def test_every_format_of_runs_has_its_writer() -> None:
    assert set(RUN_FORMATS) == set(FORMS)


def test_the_examples_of_its_help_name_files_that_it_would_write() -> None:
    endings = {}
    for line in VERBS["export"].examples:
        words = line.split()
        form = FORMS.get(words[words.index("--format") + 1])
        if form is not None:  # else of a store
            endings[Path(words[words.index("--out") + 1]).suffix] = form.ending or ""

    assert endings
    assert all(found == asked for found, asked in endings.items())


@pytest.mark.parametrize(
    ("out", "form", "said"),
    [
        ("a.onnx", None, "no format is named"),
        ("a", "nnunet", "there is no format `nnunet` for the run"),
        ("a.pt", "monai", "does not end in `.safetensors`"),
        ("there.safetensors", "monai", "`there.safetensors` is there already"),
        ("beside.safetensors", "monai", "`beside.json` is there already"),
    ],
)
def test_a_run_is_refused_with_the_way_out(
    out: str, form: str | None, said: str, tmp_path: Path
) -> None:
    exporting.pretrained(tmp_path / "run")
    for name in ("there.safetensors", "beside.json"):
        (tmp_path / name).write_text("mine")

    with pytest.raises(ConfigError) as caught:
        export(str(tmp_path / "run"), out=str(tmp_path / out),
               config=ExportConfig(form), reporter=Silent())  # type: ignore[arg-type] # fmt: skip

    assert said in caught.value.what.replace(f"{tmp_path}/", "")
    assert caught.value.remedy
    assert (tmp_path / "there.safetensors").read_text() == "mine"


@pytest.mark.parametrize("is_other", [False, True])
def test_a_folder_of_something_else_is_never_replaced(is_other: bool, tmp_path: Path) -> None:
    """A clone of a repository of the hub, with and without an export in it, lost its `.git`."""
    exporting.pretrained(tmp_path / "run")
    (tmp_path / "clone").mkdir()
    if is_other:
        (tmp_path / "clone" / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / "clone" / "model.safetensors").write_text("theirs")
    else:
        export(str(tmp_path / "run"), out=str(tmp_path / "clone"), overwrite=True,
               config=ExportConfig("hub-folder"), reporter=Silent())  # fmt: skip
        (tmp_path / "clone" / ".git").mkdir()

    with pytest.raises(ConfigError, match="is there and is not a folder in the Hugging Face"):
        export(str(tmp_path / "run"), out=str(tmp_path / "clone"),
               config=ExportConfig("hub-folder"), overwrite=True, reporter=Silent())  # fmt: skip

    assert (tmp_path / "clone" / ("config.json" if is_other else ".git")).exists()


@pytest.mark.parametrize(
    ("form", "graph", "setting"),
    [
        ("hub-folder", GraphConfig(part="encoder"), "graph.part"),
        ("monai", GraphConfig(taps=(1,)), "graph.taps"),
        ("torch-export", GraphConfig(opset=17), "graph.opset"),
    ],
)
def test_a_setting_that_a_format_has_no_use_for_is_refused(
    form: str, graph: GraphConfig, setting: str, tmp_path: Path
) -> None:
    exporting.pretrained(tmp_path / "run")

    with pytest.raises(ConfigError, match=f"`{setting}` says nothing of `--format {form}`"):
        export(str(tmp_path / "run"), out=str(tmp_path / "o"), reporter=Silent(),
               config=ExportConfig(form, graph=graph))  # type: ignore[arg-type] # fmt: skip


def test_what_is_neither_run_nor_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor a store"):
        export(str(tmp_path), out=str(tmp_path / "a"), config=ExportConfig("monai"))


def test_the_command_writes_and_a_dry_run_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exporting.pretrained(tmp_path / "run")
    out = tmp_path / "encoder.safetensors"
    line = ["export", str(tmp_path / "run"), "--format", "monai", "--out", str(out)]

    assert main([*line, "--dry_run"]) == 0
    assert not out.exists()
    assert main(line) == 0
    assert main([*line, "--overwrite"]) == 0

    assert out.is_file()
    assert "33 tensors for MONAI's ViT" in capsys.readouterr().out
