"""Settings of the command line become typed values; help texts hold every setting."""

from __future__ import annotations

import pytest

from mim3d.cli.aliases import ALIASES
from mim3d.cli.line import read_line
from mim3d.cli.options import help_text, typed_settings
from mim3d.cli.verbs import VERBS
from mim3d.config.reading import read_config
from mim3d.config.tree import settings
from mim3d.foundation.errors import ConfigError


def typed(*arguments, verb="finetune"):
    return typed_settings(VERBS[verb], read_line(verb, VERBS[verb], arguments))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "1e-4", 1e-4),
        ("optim.lr", "1", 1.0),
        ("optim.clip", "none", None),
        ("optim.clip", "null", None),
        ("optim.betas", "0.9,0.999", (0.9, 0.999)),
        ("data.crop_size", "96,96,96", (96, 96, 96)),
        ("data.crop_size", "[96,96,96]", (96, 96, 96)),
        ("data.crop_size", "[96, 96, 96]", (96, 96, 96)),
        ("data.labels", "5", 5),
        ("data.labels", "0.1", 0.1),
        ("data.window_hu", "-175,250", (-175.0, 250.0)),
        ("data.store", "true", "true"),
        ("data.store", "a: {b}", "a: {b}"),
        ("data.store", "@a,b", "@a,b"),
        ("init", "none", "none"),
        ("init", "null", None),
        ("decoder.tap_norm", "none", "none"),
        ("decoder.taps", "4,7,10,12", (4, 7, 10, 12)),
        ("augmentation.flip_axes", "x", ("x",)),
        ("augmentation.flip_axes", "x,z", ("x", "z")),
        ("augmentation.flip_axes", "[]", ()),
        ("augmentation.swap_on_flip", "[1,2],[3,4]", ((1, 2), (3, 4))),
        ("training.compile", "true", True),
    ],
)
def test_a_value_gets_the_type_of_its_setting_as_in_a_file(key, text, value):
    given = typed("c", f"--{key}={text}")

    assert given == {key: value}
    assert type(given[key]) is type(value)
    assert read_config(None, VERBS["finetune"].config, given) == read_config(
        None, VERBS["finetune"].config, {key: text}
    )


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("objective.mask_ratio", "0.6", 0.6),
        ("objective.mask_ratio", "0.3,0.8", (0.3, 0.8)),
        ("objective.masking", "tube", "tube"),
        ("objective.masking", "uniform,tube", ("uniform", "tube")),
        ("objective.guide.share", "0,0.5", (0.0, 0.5)),
        ("data.origin_grid", "32", 32),
        ("data.origin_grid", "32,16,8", (32, 16, 8)),
    ],
)
def test_a_setting_that_takes_one_or_several_is_typed_either_way(key, text, value):
    given = typed("c", f"--{key}={text}", verb="pretrain")

    assert given == {key: value}
    assert type(given[key]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["--optim.lr", "fast"], "`--optim.lr` is `fast`, expected a number", None),
        (["--optim.lr=nan"], "`--optim.lr` is `nan`, expected a number", None),
        (["--steps", "1e3"], "`--steps` is `1000.0`, expected a whole number", "write `1000`"),
        (
            ["--data.crop_size", "96"],
            "`--data.crop_size` is `[96]`, expected 3 whole numbers",
            None,
        ),
        (["--data.crop_size", "9,9"], "`--data.crop_size` is `[9, 9]`, expected 3 whole", None),
        (["--data.crop_size", "[9,"], "`--data.crop_size` is `[9,`, expected 3 whole", None),
        (
            ["--inference.flips", "x,w"],
            "`--inference.flips` is `['x', 'w']`, expected a list of `x`, `y`, `z`",
            None,
        ),
        (
            ["--data.placement", "bdy"],
            "`--data.placement` is `bdy`, expected one of `uniform`, `body`, `label`",
            "did you mean `body`?",
        ),
        (["--training.compile=yes"], "`--training.compile` is `yes`, expected `true` or", None),
    ],
)
def test_a_wrong_value_is_one_sentence_about_the_option_as_typed(arguments, message, remedy):
    with pytest.raises(ConfigError) as caught:
        typed("c", *arguments)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy == remedy


@pytest.mark.parametrize("name", VERBS)
def test_help_says_what_it_does_then_examples_then_every_setting_with_its_docstring(name):
    verb = VERBS[name]

    text = help_text(name, verb)

    assert text.split()[:5] == verb.story.split()[:5]
    assert all(f"\n  {example}\n" in text for example in verb.examples)
    assert text.index("examples:") < text.index("usage:") < text.index("options:")
    for key in settings(verb.config) if verb.config else ():
        assert f"\n  --{key} " in text or f"\n  --{key}\n" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_help_holds_docstring_choices_short_name_and_default():
    text = " ".join(help_text("finetune", VERBS["finetune"]).split())

    assert "--data.fold Validate on this fold of 5" in text
    assert "One of uniform, body, label. [label]" in text
    assert "In short --labels. [null]" in text
    assert "--data.crop_size Voxels of a crop along x, y, z." in text
    assert "[96,96,96]" in text
    assert "--read.max_gib Largest volume taken" in " ".join(
        help_text("prepare", VERBS["prepare"]).split()
    )


@pytest.mark.parametrize("name", VERBS)
def test_examples_of_every_verb_can_be_typed(name):
    for example in VERBS[name].examples:
        words = example.split()
        if words[0] == "torchrun":
            words = words[words.index("mim3d") :]
        assert words[:2] == ["mim3d", name]

        line = read_line(name, VERBS[name], words[2:])
        if VERBS[name].config:
            typed_settings(VERBS[name], line)
        assert not VERBS[name].needs_out or "out" in line.switches


def test_short_names_are_documented():
    texts = " ".join(help_text(name, verb) for name, verb in VERBS.items())

    assert all(f"--{short}" in texts for short in ALIASES)
