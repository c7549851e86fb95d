"""The share of one of several commands that do one work together: `--shard i/n`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mim3d.foundation.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Which of several commands one is.

    Args:
        index: from 0 to `count` - 1.
        count: how many there are.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str, setting: str = "shard") -> Shard:
        """What `i/n` says.

        Args:
            text: as it was typed.
            setting: what the text is the value of, for the message.

        Raises:
            ConfigError: it is not `i/n` with i from 0 to n - 1.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found or int(found[1]) >= int(found[2]):
            raise ConfigError(
                f"`{setting}` is `{text}`, expected `i/n` with i from 0 to n - 1",
                remedy="of four commands the first one is `--shard 0/4`, the last `--shard 3/4`",
                code="shard",
            )
        return cls(int(found[1]), int(found[2]))

    def share(self, items: Sequence[T]) -> tuple[T, ...]:
        """Every n-th item from the i-th one on: of all shards together each item once."""
        return tuple(items[self.index :: self.count])


def asked_shard(text: str | None, *, overwrite: bool = False) -> Shard | None:
    """The shard of a command that fills a folder together with others; None where it is alone.

    Args:
        text: what `--shard` says.
        overwrite: whether the command would first empty the folder.

    Raises:
        ConfigError: it is no shard, or it would remove what the others have done.
    """
    if text is None:
        return None
    shard = Shard.parse(text)
    if overwrite:
        raise ConfigError(
            f"shard {shard} with --overwrite would remove what the other shards have done",
            remedy="leave --overwrite out, and choose an --out that does not exist yet",
            code="shard",
        )
    return shard
