"""Runs of a benchmark are found by their arm."""

from __future__ import annotations

from mim3d.workflows.convergence.begun import begun


def test_runs_are_found_by_arm_whatever_is_left_of_them(tmp_path):
    names = {
        "finetune": ["mae-labels0.05-0", "mae-labels1e-05-11", "mae-x-labels5-0", "maelabels5-0"],
        "records": ["mae-labels5-2.json", "mae-labels0.05-0.json", "wide-labels5-0.json"],
        "pretrain": ["mae-seed0", "mae-seed3-fold4", "mae-x-seed0"],
        "pretrained": ["mae-seed0.json", "mae-seed7.json"],
        "tune": ["mae-lr0.001", "mae-lr3e-05-fold2", "mae-x-lr0.1", "mae-lr0.1-warmup30-fold1"],
    }
    for folder, listed in names.items():
        for name in listed:
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}") if path.suffix == ".json" else path.mkdir()

    found = {(run.sort, run.name): run for run in begun(tmp_path, "mae")}

    assert set(found) == {
        ("finetune", "mae-labels0.05-0"), ("finetune", "mae-labels1e-05-11"),
        ("finetune", "mae-labels5-2"), ("pretrain", "mae-seed0"), ("pretrain", "mae-seed3-fold4"),
        ("pretrain", "mae-seed7"), ("tune", "mae-lr0.001"), ("tune", "mae-lr3e-05-fold2"),
        ("tune", "mae-lr0.1-warmup30-fold1"),
    }  # fmt: skip
    assert found["finetune", "mae-labels1e-05-11"].replicate == 11
    assert found["tune", "mae-lr3e-05-fold2"].fold == 2
    assert found["tune", "mae-lr0.1-warmup30-fold1"].fold == 1
    assert begun(tmp_path / "none", "mae") == ()
