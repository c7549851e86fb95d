"""A config becomes a file and comes back."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mim3d.config.reading import read_config
from mim3d.config.training import OptimConfig
from mim3d.config.verbs import DemoConfig, FinetuneConfig, PrepareConfig, PretrainConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.foundation.errors import ConfigError


@pytest.mark.parametrize("kind", [PrepareConfig, PretrainConfig, FinetuneConfig, DemoConfig])
def test_a_dumped_config_reads_back_equal(tmp_path, kind):
    path = tmp_path / "back.yaml"
    path.write_text(dump(to_mapping(kind())))

    assert read_config(path, kind) == kind()


@hypothesis_settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    rate=st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300),
    pairs=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), max_size=3).map(tuple),
)
@example(text="1e-4", rate=1e-4, pairs=((1, 2),))
@example(text="null", rate=-0.0, pairs=())
def test_any_values_read_back_equal(tmp_path, text, rate, pairs):
    config = dataclasses.replace(
        FinetuneConfig(),
        init=text,
        optim=OptimConfig(lr=rate),
        augmentation=dataclasses.replace(FinetuneConfig().augmentation, swap_on_flip=pairs),
    )
    path = tmp_path / "back.yaml"
    path.write_text(dump(to_mapping(config)))

    assert read_config(path, FinetuneConfig) == config


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_no_file_can_say_is_refused_by_its_key(value):
    """Who writes Python can hand one over; from files and command lines none is read."""
    cases = {
        f"`optim.lr` is `{value}`": OptimConfig(lr=value),
        f"`optim.betas` is `(0.9, {value})`": OptimConfig(betas=(0.9, value)),
    }
    for what, optim in cases.items():
        with pytest.raises(ConfigError, match=re.escape(what)):
            to_mapping(PretrainConfig(optim=optim))
