"""Several commands that fill one store together give the store of one command alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from preparing import RULE, Recorder, all_files, config_with, quarantine, write_nifti

from mim3d.config.verbs import PrepareConfig
from mim3d.data.phantom import make_cohort
from mim3d.data.prepare import PreparationResult, modality, prepare_store, sharing
from mim3d.data.prepare import job as job_module
from mim3d.data.store import Store
from mim3d.foundation import claims as claims_module
from mim3d.foundation.errors import ConfigError, ExitCode, UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.workflows.prepare import prepare
from tests.reliability.killing import Child, Death, Say, life

CASES = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven cases, whose validation list is drawn, of a modality that nobody says."""
    folder = tmp_path_factory.mktemp("source")
    made = make_cohort(folder / "made", 1, training=6, validation=0, unlabelled=1, rule=RULE)
    plain = folder / "cases.csv"
    rows = ["case,image,label"]
    for image in sorted(made.rglob("images*/*.nii.gz")):
        label = made / "labelsTr" / image.name
        rows.append(f"{image.name[:-7]},{image},{label if label.is_file() else ''}")
    plain.write_text("\n".join(rows) + "\n")
    return plain


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of the store that one command makes."""
    out = tmp_path_factory.mktemp("alone") / "store"
    prepare_store(source, out, config_with())
    return all_files(out)


def config_of(shard: str, **settings: object) -> PrepareConfig:
    return replace(config_with(**settings), shard=shard)


def one_shard(source: Path, out: Path, shard: str, **settings: object) -> PreparationResult:
    return prepare_store(source, out, config_of(shard, **settings))


def in_child(source: Path, out: Path, shard: str, say: Say) -> None:
    """Says which cases it prepared as they are done, and in the end how many others are left."""
    really = job_module.write_case

    def write_case(folder, case, *rest):
        written = really(folder, case, *rest)
        say(case.case_id)
        return written

    job_module.write_case = write_case
    claims_module.LOOK_SECONDS = 0.02
    say(f"left {one_shard(source, out, shard).left}")


@pytest.mark.parametrize("order", ["0", "10", "201", "5238174690"])
def test_shards_of_any_number_in_any_order_make_the_store_of_one_command(
    source: Path, alone: dict[str, bytes], tmp_path: Path, order: str
) -> None:
    """Ten shards of seven cases: three of them have nothing to prepare."""
    results = [one_shard(source, tmp_path / "s", f"{i}/{len(order)}") for i in order]

    assert all_files(tmp_path / "s") == alone
    assert sum(len(result.prepared) for result in results) == CASES
    assert Store(tmp_path / "s").ids("validation")
    assert [result.exit_code for result in results] == [ExitCode.DONE] * len(order)
    left = CASES - np.cumsum([len(result.prepared) for result in results])
    assert [result.left for result in results] == left.tolist()
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "cases", "fingerprint.json", "manifest.json", "quarantine.tsv",
    }  # fmt: skip


def test_a_store_is_none_before_its_last_shard_is_done(source: Path, tmp_path: Path) -> None:
    reporter = Recorder()
    first = prepare_store(source, tmp_path / "s", config_of("0/2"), reporter)

    assert first.fingerprint == {}
    assert first.left == 3
    assert "3 case(s) or more are still to be prepared by others" in reporter.lines[-1]
    with pytest.raises(UserError, match="its preparation has not finished"):
        Store(tmp_path / "s")

    last = one_shard(source, tmp_path / "s", "1/2")
    assert last.fingerprint["cases"] == CASES
    assert len(Store(tmp_path / "s").cases) == CASES


def test_shards_at_the_same_time_prepare_no_case_twice(
    source: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Two of them are the same shard, and three part the cases otherwise than the rest."""
    shards = ["0/2", "1/2", "0/2", "0/3", "1/3", "2/3"]

    children = [Child(partial(in_child, source, tmp_path / "s", shard)) for shard in shards]
    lives = [child.wait() for child in children]

    assert [one.fault for one in lives] == [None] * len(shards)
    written = [word for one in lives for word in one.said if not word.startswith("left")]
    assert len(written) == len(set(written)) == CASES
    assert all_files(tmp_path / "s") == alone
    assert any("left 0" in one.said for one in lives)


def test_killed_shards_that_run_again_lose_nothing(
    source: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Three at once, each killed before a file operation of its own choice, some twice."""
    whole = life(partial(in_child, source, tmp_path / "whole", "0/3"))
    random = generator(20261122, "killed-shards")
    for trial in range(4):
        out = tmp_path / f"s{trial}"
        said: list[str] = []
        for _ in range(2):
            deaths = [Death(operation=int(n)) for n in random.integers(whole.operations, size=3)]
            children = [
                Child(partial(in_child, source, out, f"{i}/3"), death)
                for i, death in enumerate(deaths)
            ]
            said += [word for child in children for word in child.wait().said]
        acknowledged = {word for word in said if not word.startswith("left")}

        results = [one_shard(source, out, f"{i}/3") for i in random.permutation(3)]

        prepared = {case_id for result in results for case_id in result.prepared}
        assert not prepared & acknowledged, trial
        assert all_files(out) == alone, trial
        shutil.rmtree(out)


def test_a_command_alone_takes_over_what_killed_shards_left(
    source: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    one_shard(source, out, "0/3")
    whole = life(partial(in_child, source, tmp_path / "whole", "0/3"))
    life(partial(in_child, source, out, "1/3"), Death(operation=whole.operations // 2))
    assert (out / "shards").is_dir()

    result = prepare_store(source, out, config_with())

    assert len(result.kept) >= 3
    assert all_files(out) == alone
    assert not (out / "shards").exists()


def test_a_process_of_its_own_claims_and_a_case_of_others_is_waited_for(
    source: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, waited = Recorder(), []
    out = tmp_path / "s"
    one_shard(source, out, "1/7")
    claims = claims_module.Claims(out)
    with claims.claimed("phantom_003") as is_mine:
        assert is_mine

        def wait(self: object, names: list[str]) -> None:
            waited.append(names)
            shutil.rmtree(claims.path)

        monkeypatch.setattr(claims_module.Claims, "wait", wait)
        prepare_store(source, out, config_of("0/1", workers=1), reporter)

    assert waited == [["phantom_003"]]
    assert "1 case(s) wait for other commands, which are at them" in reporter.lines
    assert all_files(out) == alone


def test_what_shards_refuse_is_one_quarantine_and_each_ends_by_its_own(tmp_path: Path) -> None:
    folder = make_cohort(tmp_path / "c", 1, training=4, validation=1, rule=RULE)
    first, _, _, fourth = sorted((folder / "imagesTr").glob("*.nii.gz"))[:4]
    first.write_bytes(b"no image")
    fourth.write_bytes(fourth.read_bytes()[:-500])
    prepare_store(folder, tmp_path / "one", config_with())

    codes = [one_shard(folder, tmp_path / "s", f"{i}/5").exit_code for i in range(4)]
    last = one_shard(folder, tmp_path / "s", "4/5")

    assert codes == [ExitCode.INPUT, ExitCode.DONE, ExitCode.DONE, ExitCode.INPUT]
    # Who merges speaks for the store.
    assert last.exit_code == ExitCode.PARTIAL
    assert [refusal.case_id for refusal in last.refused] == ["phantom_000", "phantom_003"]
    assert len(quarantine(tmp_path / "s")) == 2
    assert all_files(tmp_path / "s") == all_files(tmp_path / "one")
    # A fault that is mended is seen by the shard that meets it again.
    shutil.copy(folder / "imagesTr" / "phantom_001.nii.gz", first)
    shutil.copy(folder / "labelsTr" / "phantom_001.nii.gz", folder / "labelsTr" / first.name)
    again = one_shard(folder, tmp_path / "s", "0/5")
    assert again.prepared == ("phantom_000",)
    assert again.exit_code == ExitCode.PARTIAL
    assert len(Store(tmp_path / "s").cases) == 4


def test_a_store_of_refused_cases_alone_is_an_error_of_the_one_that_finds_it(
    tmp_path: Path,
) -> None:
    for number in range(2):
        write_nifti(tmp_path / "c" / f"case_{number}.nii.gz", np.ones((11, 13, 7), np.int16))

    results = [one_shard(tmp_path / "c", tmp_path / "s", f"{i}/3") for i in range(3)]

    assert [one.exit_code for one in results] == [ExitCode.INPUT] * 3
    assert not (tmp_path / "s/manifest.json").exists()
    assert len(quarantine(tmp_path / "s")) == 2


def test_the_first_shard_alone_looks_at_values_to_find_the_modality(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peeked = []
    really = modality.run

    def run(do, cases, work, processes):
        peeked.append([case.case_id for case in cases])
        return really(do, cases, work, processes)

    monkeypatch.setattr(modality, "run", run)
    # Nor does a sidecar say it.
    monkeypatch.setattr(modality, "modalities_before", lambda _: None)
    for i in range(2):
        one_shard(source, tmp_path / "s", f"{i}/3")
    assert [path.name for path in (tmp_path / "s" / "shards").iterdir()] == [sharing.BEGUN]
    one_shard(source, tmp_path / "s", "2/3")

    assert len(peeked) == 1
    assert not (tmp_path / "s" / "shards").exists()


def test_other_settings_make_another_store_when_all_shards_have_them(
    source: Path, tmp_path: Path
) -> None:
    for i in range(3):
        one_shard(source, tmp_path / "s", f"{i}/3")
    settings = {"spacing_mm": (2.0, 2.0, 3.0)}
    prepare_store(source, tmp_path / "one", config_with(**settings))

    lefts = [one_shard(source, tmp_path / "s", f"{i}/3", **settings).left for i in (1, 2, 0)]

    assert lefts == [5, 3, 0]
    assert all_files(tmp_path / "s") == all_files(tmp_path / "one")


def test_a_changed_source_is_prepared_by_its_shard_alone(tmp_path: Path) -> None:
    folder = make_cohort(tmp_path / "c", 1, training=4, validation=1, rule=RULE)
    for i in range(5):
        one_shard(folder, tmp_path / "s", f"{i}/5")
    path = folder / "imagesTr" / "phantom_002.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), path)

    before = one_shard(folder, tmp_path / "s", "0/5")
    at = one_shard(folder, tmp_path / "s", "2/5")

    assert (before.prepared, before.left) == ((), 1)
    assert (at.prepared, at.left, at.is_changed) == (("phantom_002",), 0, True)
    prepare_store(folder, tmp_path / "one", config_with())
    assert all_files(tmp_path / "s") == all_files(tmp_path / "one")


def test_cases_that_leave_or_join_the_source_between_shards_are_taken_in(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    make_cohort(folder, 1, training=5, validation=0, rule=RULE)
    for path in folder.glob("dataset.json"):
        path.unlink()
    gone, late = "phantom_000", "phantom_004"
    aside = tmp_path / "late.nii.gz"
    (folder / "imagesTr" / f"{late}.nii.gz").rename(aside)
    one_shard(folder / "imagesTr", tmp_path / "s", "0/2")
    aside.rename(folder / "imagesTr" / f"{late}.nii.gz")
    (folder / "imagesTr" / f"{gone}.nii.gz").unlink()

    results = [one_shard(folder / "imagesTr", tmp_path / "s", f"{i}/2") for i in (1, 0)]

    assert [result.left for result in results] == [2, 0]
    assert Store(tmp_path / "s").cases == tuple(f"phantom_00{i}" for i in (1, 2, 3, 4))


def test_the_command_says_what_its_shard_did(source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "s")
    first = prepare(str(source), out=out, config=config_of("0/2"), reporter=Silent())
    last = prepare(str(source), out=out, config=config_of("1/2"), reporter=Silent())

    assert first.text == (
        "shard 0/2: 4 cases prepared, 0 kept as they were, 0 refused; the store is not whole yet"
    )
    assert (first.facts["shard"], first.facts["left"]) == ("0/2", 3)
    assert [path.name for path in first.files] == ["s"]
    assert last.text.endswith(
        "3 cases prepared, 0 kept as they were, 0 refused; the store is whole"
    )
    assert [path.name for path in last.files] == ["s", "contact_sheet.png"]


def test_a_dry_run_lists_the_cases_of_the_shard_and_overwriting_is_refused(
    source: Path, tmp_path: Path
) -> None:
    run = partial(prepare, str(source), out=str(tmp_path / "s"), reporter=Silent())

    listed = [run(config=config_of(f"{i}/3"), dry_run=True).facts["cases"] for i in range(3)]

    assert listed == [3, 2, 2]
    with pytest.raises(ConfigError, match="--overwrite would remove"):
        run(config=config_of("0/3"), overwrite=True)
    with pytest.raises(ConfigError, match="expected `i/n`"):
        run(config=config_of("3/3"))
    assert not os.path.exists(tmp_path / "s")
