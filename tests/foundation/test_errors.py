"""Errors of users, and shapes at the door."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mim3d.foundation.errors import (
    ConfigError,
    ExitCode,
    Interrupted,
    ResourceError,
    ShapeError,
    StoppedError,
    UserError,
    VolumeError,
    WeightsError,
    check_shape,
)


def test_exit_codes_are_the_documented_numbers():
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 75, 130, 143]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UserError, 3),
        (VolumeError, 3),
        (WeightsError, 3),
        (ConfigError, 2),
        (ResourceError, 5),
        (StoppedError, 6),
        (Interrupted, 75),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_crosses_processes_whole(kind, code):
    error = kind("`a` is wrong", where="`b.nii.gz`", remedy="do `c`", code="cut-short")

    back = pickle.loads(pickle.dumps(error))

    assert type(back) is kind
    assert (back.what, back.where, back.remedy, back.code) == (
        "`a` is wrong",
        "`b.nii.gz`",
        "do `c`",
        "cut-short",
    )
    assert back.exit_code == code
    assert str(back) == "`b.nii.gz`: `a` is wrong"


def test_an_exit_code_of_its_own_crosses_processes_too():
    error = UserError("`a` is wrong", exit_code=ExitCode.PARTIAL)

    assert pickle.loads(pickle.dumps(error)).exit_code is ExitCode.PARTIAL
    assert UserError.exit_code is ExitCode.INPUT
    assert str(error) == "`a` is wrong"


def test_a_shape_with_another_number_of_axes_is_a_programmers_error():
    check_shape(np.zeros((1, 2, 11, 13, 7)), "b c x y z", "VolumeViT")

    with pytest.raises(
        ShapeError, match=r"VolumeViT expects `b c x y z`, got the shape \(11, 13, 7\)"
    ):
        check_shape(np.zeros((11, 13, 7)), "b c x y z", "VolumeViT")
    assert not issubclass(ShapeError, UserError)
