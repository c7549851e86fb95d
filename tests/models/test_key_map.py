"""Keys of another program's weights become ours."""

from __future__ import annotations

import pytest

from mim3d.foundation.errors import WeightsError
from mim3d.models.key_map import KeyMap, renamed


def test_prefixes_come_off_again_and_again_while_one_fits() -> None:
    key_map = KeyMap()

    assert key_map("module._orig_mod.module.norm.weight") == "norm.weight"
    assert key_map("modules.norm.weight") == "modules.norm.weight"


def test_the_longest_name_that_fits_is_replaced_and_whole_names_only_whole() -> None:
    rename = {"blocks.": "b.", "blocks.0.": "first.", "pos": "positions", "norm": "ln"}
    key_map = KeyMap(rename=rename)

    found = [key_map(key) for key in ("blocks.0.a", "blocks.1.a", "pos", "pos.x", "norm.weight")]

    assert found == ["first.a", "b.1.a", "positions", "pos.x", "norm.weight"]


def test_what_is_dropped_is_listed_and_judged_after_stripping() -> None:
    key_map = KeyMap(strip=("net.",), drop=("head.", "mask_token"))

    kept, dropped = renamed(["net.head.weight", "net.norm", "mask_token", "header"], key_map)

    assert kept == {"net.norm": "norm", "header": "header"}
    assert dropped == ("net.head.weight", "mask_token")


@pytest.mark.parametrize(
    ("keys", "key_map", "why"),
    [
        (["a.x", "b.x"], KeyMap(rename={"a.": "c.", "b.": "c."}), "`a.x` and `b.x` would both"),
        (["module.a", "a"], KeyMap(), "`module.a` and `a` would both become `a`"),
        (["module."], KeyMap(), "would become ``"),
    ],
)
def test_two_keys_never_become_one_and_none_becomes_nothing(
    keys: list[str], key_map: KeyMap, why: str
) -> None:
    with pytest.raises(WeightsError, match=why):
        renamed(keys, key_map)


def test_an_empty_prefix_is_no_endless_loop() -> None:
    assert KeyMap(strip=("",))("a") == "a"
