"""Final Dice case by case."""

from __future__ import annotations

import numpy as np
from synthetic_study import record, rising

from mim3d.evaluation.case_dice import case_means, final_dice
from mim3d.evaluation.study import Study


def test_a_case_has_one_value_a_sound_run_at_the_last_step():
    runs = [
        record("mae", rising, replicate=0, cases=3, noise=0.05),
        record("mae", rising, replicate=1, cases=3, noise=0.05),
        record("mae", rising, replicate=2, cases=3, noise=0.05, dead="collapsed"),
        record("scratch", rising, replicate=0, cases=3, noise=0.05),
    ]
    study = Study(tuple(runs))

    found, means = final_dice(study, "mae", "0.1"), case_means(study, "mae", "0.1")

    assert list(found) == ["case_00", "case_01", "case_02"]
    for place, case in enumerate(found):
        slow = [run.dice[-1][place] for run in runs[:2]]
        assert found[case] == tuple(slow)
        assert means[case] == np.mean(slow)


def test_an_arm_without_a_sound_run_has_no_cases():
    study = Study((record("scratch", rising, cases=3),))

    assert final_dice(study, "mae", "0.1") == {}
