"""Shares of a work that several commands do together."""

from __future__ import annotations

import pytest

from mim3d.foundation.errors import ConfigError, ExitCode
from mim3d.foundation.shard import Shard, asked_shard


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_all_shards_together_have_every_item_once_and_about_equally_many(count: int) -> None:
    items = [f"case {number}" for number in range(13)]

    shares = [Shard.parse(f"{index}/{count}").share(items) for index in range(count)]

    assert sorted(sum(shares, ()), key=items.index) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert str(Shard.parse(f"0/{count}")) == f"0/{count}"


@pytest.mark.parametrize(
    "text",
    ["4/4", "5/4", "0/0", "1", "a/b", "-1/2", "0/4 ", "1/2/3", "", "\u0661/\u0662", "0/9999999"],
)
def test_what_is_no_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="`convergence.shard` is .* expected `i/n`") as caught:
        Shard.parse(text, "convergence.shard")

    assert caught.value.exit_code == ExitCode.USAGE
    assert "the first one is `--shard 0/4`" in str(caught.value.remedy)


def test_a_shard_does_not_empty_the_folder_of_the_others() -> None:
    assert asked_shard(None, overwrite=True) is None
    assert asked_shard("1/3") == Shard(1, 3)
    with pytest.raises(ConfigError, match="--overwrite would remove"):
        asked_shard("1/3", overwrite=True)
