"""A file or mapping becomes a config or one sentence."""

from __future__ import annotations

import dataclasses
import json
import string

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mim3d.config.data import DataConfig
from mim3d.config.nodes import MAX_BYTES
from mim3d.config.reading import from_mapping, read_config
from mim3d.config.training import OptimConfig
from mim3d.config.tree import settings
from mim3d.config.verbs import DemoConfig, FinetuneConfig, PrepareConfig, PretrainConfig
from mim3d.config.writing import differences, to_mapping
from mim3d.foundation.errors import ConfigError, ExitCode


@pytest.fixture
def read(tmp_path):
    """Reads text as a config file."""

    def reader(text, kind=FinetuneConfig, name="own.yaml", **overrides):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(path, kind, overrides.get("overrides"))

    return reader


def refused(read, text, **keywords):
    with pytest.raises(ConfigError) as caught:
        read(text, **keywords)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(params=["libyaml", "python"])
def parser(request, monkeypatch):
    """Both of PyYAML's parsers: which one is there depends on how PyYAML was built."""
    if request.param == "python":
        monkeypatch.setattr("mim3d.config.nodes._LOADER", yaml.SafeLoader)


# What a good file gives


def test_a_file_changes_only_what_it_says(read):
    config = read("optim:\n  lr: 1e-4\n  clip: null\ndata:\n  crop_size: [11, 13, 7]\ninit: none\n")

    assert differences(FinetuneConfig(), config) == [
        "data.crop_size",
        "optim.lr",
        "optim.clip",
        "init",
    ]
    assert config.optim == OptimConfig(lr=1e-4, clip=None)
    assert config.data == DataConfig(placement="label", crop_size=(11, 13, 7))
    assert config.init == "none"


@pytest.mark.parametrize("text", ["", "# nothing\n", "optim:\n", "---\n", "{}"])
def test_an_empty_file_is_the_defaults(read, text):
    assert read(text) == FinetuneConfig()


def test_json_is_read_alike_also_when_indented_by_tabs(read, parser):
    content = {"optim": {"lr": 1e-4, "betas": [0.9, 0.95]}, "init": 'runs/"\u00e4"'}
    text = json.dumps(content, indent="\t")

    config = read(text, name="own.json")

    assert config.optim.lr == 1e-4
    assert config.init == 'runs/"\u00e4"'


def test_quoted_words_stay_text_and_quoted_numbers_are_no_numbers(read):
    assert read('init: "null"').init == "null"
    assert "expected a number" in str(refused(read, 'optim: {lr: "1e-4"}'))


def test_overrides_come_last_and_are_read_as_typed(read):
    config = read(
        "data: {crop_size: [8, 8, 8], labels: 3}",
        overrides={
            "data.crop_size": "11,13,7",
            "data.labels": "0.1",
            "data.window_hu": "-1000, 5.5",
            "augmentation.swap_on_flip": "[1,2],[3,4]",
            "augmentation.flip_axes": "x",
            "inference.flips": "[]",
            "optim.clip": "none",
            "init": "none",
            "training.steps": 7,
            "encoder.patch": [4, 8, 16],
        },
    )

    assert config.data.crop_size == (11, 13, 7)
    assert config.data.labels == 0.1
    assert config.data.window_hu == (-1000.0, 5.5)
    assert config.augmentation.swap_on_flip == ((1, 2), (3, 4))
    assert config.augmentation.flip_axes == ("x",)
    assert config.inference.flips == ()
    assert config.optim.clip is None
    assert config.init == "none"
    assert config.training.steps == 7
    assert config.encoder.patch == (4, 8, 16)


def test_without_a_file_the_defaults_are_overridden():
    assert read_config(None, DemoConfig, {"seed": "3"}) == DemoConfig(seed=3)


# What is refused, and how


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (
            "data:\n  fold: 1\noptim:\n  weight_decy: 3\n",
            "`optim.weight_decy` in `own.yaml` line 4 is not a setting of `optim`",
            "did you mean `optim.weight_decay`?",
        ),
        (
            "lr: 3\n",
            "`lr` in `own.yaml` line 1 is not a setting of `mim3d finetune`",
            "did you mean `optim.lr`?",
        ),
        (
            "optim.lr: 3",
            "`optim.lr` in `own.yaml` line 1 must be written as `lr:` below `optim:`",
            None,
        ),
        (
            "\noptim: {lr: fast}",
            "`optim.lr` in `own.yaml` line 2 is `fast`, expected a number",
            None,
        ),
        (
            "training:\n  steps: 1e3",
            "`training.steps` in `own.yaml` line 2 is `1000.0`, expected a whole number",
            "write `1000`",
        ),
        (
            "data: {placement: bdy}",
            "`data.placement` in `own.yaml` line 1 is `bdy`, expected one of `uniform`, `body`, "
            "`label`",
            "did you mean `body`?",
        ),
        (
            "data:\n  crop_size: 96",
            "`data.crop_size` in `own.yaml` line 2 is `96`, expected 3 whole numbers",
            None,
        ),
        (
            "data: {labels: true}",
            "`data.labels` in `own.yaml` line 1 is `true`, expected a number or `null`",
            None,
        ),
        (
            "optim:\n  lr: 1\n  clip: 1\n  lr: 2",
            "`optim.lr` in `own.yaml` line 4 was given before, in line 2",
            "keep one of the two",
        ),
        ("optim: 3", "`optim` in `own.yaml` line 1 must hold lines of `key: value`", None),
        ("[1, 2]", "`own.yaml` must hold lines of `key: value`", None),
        ("a: b: c", "`own.yaml` line 1 is not YAML: mapping values are not allowed", None),
        ("data: {store: {a: 1}}", "expected text or `null`", None),
        ("init: &a x\n", "`own.yaml` line 1 has an anchor or alias; write the value out", None),
        ("init: *a\n", "`own.yaml` line 1", None),
        ("init: !!str x\n", "`own.yaml` line 1 has a tag; write a plain value", None),
        ("init: x\n---\ninit: y\n", "`own.yaml` line 2 begins a second document", None),
        ("<<: {init: x}", "`<<` in `own.yaml` line 1 is not a setting of", None),
        ("? [1, 2]\n: 3", "`[...]` in `own.yaml` line 1 is not a setting", None),
        ("init: \x00", "forbids", None),
        (b"init: \xff\xfe", "is not UTF-8 text", None),
    ],
)
def test_a_wrong_file_is_one_sentence_with_key_file_and_line(
    read, parser, text, message, remedy, tmp_path
):
    error = refused(read, text)

    said = str(error).replace(f"{tmp_path}/", "")
    assert said.startswith(message) or message in said
    assert error.remedy == remedy


def test_a_file_above_one_mebibyte_is_refused_unread(read):
    assert "larger than 1 MiB" in str(refused(read, "#" * (MAX_BYTES + 1)))
    assert read("#" * MAX_BYTES) == FinetuneConfig()


@pytest.mark.parametrize("text", ["x: " + "[" * 500_000, "x: " + "{a: " * 200_000])
def test_depth_ends_at_fifty(read, text):
    assert "nested more than 50 deep" in str(refused(read, text))


def test_a_flood_of_values_is_refused_before_it_is_built(read):
    assert "no config has so many" in str(refused(read, "x: [" + "[]," * 300_000 + "]"))


def test_an_override_of_no_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="`optim.lrr` is not a setting of `optim`") as caught:
        read_config(None, PretrainConfig, {"optim.lrr": 1})
    assert caught.value.remedy == "did you mean `optim.lr`?"

    with pytest.raises(ConfigError, match="`optim` is a section"):
        read_config(None, PretrainConfig, {"optim": 1})


@pytest.mark.parametrize("name", ["bomb.yaml", "config.yaml", "bundle.json", "deep.json"])
@pytest.mark.real_data
def test_no_trap_of_the_zoo_is_read(shared, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for kind in (PrepareConfig, PretrainConfig, FinetuneConfig):
        with pytest.raises(ConfigError):
            read_config(shared / "zoo" / "traps" / name, kind)

    assert list(tmp_path.iterdir()) == []


# Any document whatever

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["none", "auto", "1e-4", "010", "yes", "!!python/name:os.system", "*a", "&a b"]
    ),
)
KEYS = st.one_of(
    st.sampled_from(sorted({part for key in settings(FinetuneConfig) for part in key.split(".")})),
    st.text(string.printable, max_size=12),
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@hypothesis_settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    document=DOCUMENTS, style=st.sampled_from(["json", "loose", "text"]), junk=st.text(max_size=30)
)
def test_any_document_gives_a_config_or_one_sentence(tmp_path, document, style, junk):
    path = tmp_path / "any.yaml"
    text = json.dumps(document) if style == "json" else _loosely(document)
    path.write_bytes((junk + text if style == "text" else text).encode(errors="replace"))

    try:
        config = read_config(path, FinetuneConfig)
    except ConfigError as error:
        assert "\n" not in f"{error}{error.remedy}"
    else:
        assert isinstance(config, FinetuneConfig)


def _loosely(value, depth=0):
    """YAML in block style without any quotes, the way people write it."""
    if isinstance(value, dict):
        lines = [f"{' ' * depth}{key}: {_loosely(item, depth + 1)}" for key, item in value.items()]
        return "\n" + "\n".join(lines)
    if isinstance(value, list):
        return "[" + ", ".join(_loosely(item, depth) for item in value) + "]"
    return str(value)


def test_a_mapping_out_of_json_becomes_a_config_and_is_checked_alike():
    config = dataclasses.replace(PretrainConfig(), init="runs/a")
    mapping = json.loads(json.dumps(to_mapping(config)))

    assert from_mapping(mapping, PretrainConfig, where="`store`") == config
    mapping["optim"]["lrr"] = 1
    with pytest.raises(ConfigError, match="`optim.lrr` in `store` is not a setting"):
        from_mapping(mapping, PretrainConfig, where="`store`")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("objective.mask_ratio", "0.6", 0.6),
        ("objective.mask_ratio", "0.3,0.8", (0.3, 0.8)),
        ("objective.masking", "tube", "tube"),
        ("objective.masking", "uniform,tube", ("uniform", "tube")),
        ("objective.masking", "[uniform, tube]", ("uniform", "tube")),
        ("data.origin_grid", "32", 32),
        ("data.origin_grid", "32,16,8", (32, 16, 8)),
        ("data.origin_grid", "none", None),
    ],
)
def test_what_may_be_one_or_several_is_what_the_commas_say(key, text, value):
    config = read_config(None, PretrainConfig, {key: text})

    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == value
