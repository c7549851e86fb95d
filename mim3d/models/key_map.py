"""How the keys of another program's weights become ours: prefixes and names, no patterns.

A map is data, so that a new source is a file and no code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mim3d.foundation.errors import WeightsError


@dataclass(frozen=True)
class KeyMap:
    """What happens to a key, in this order.

    Args:
        strip: prefixes that are taken off, again and again, while one of them fits.
        drop: names or, with a dot at the end, prefixes of keys that are left out.
        rename: names or, with a dot at the end, prefixes, and what stands in their place; the
            longest that fits counts.
    """

    strip: tuple[str, ...] = ("module.", "_orig_mod.")
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, key: str) -> str | None:
        """The key in our words; None where it is left out."""
        while prefix := next((one for one in self.strip if one and key.startswith(one)), ""):
            key = key[len(prefix) :]
        if any(_fits(key, one) for one in self.drop):
            return None
        fitting = [one for one in self.rename if _fits(key, one)]
        if not fitting:
            return key
        longest = max(fitting, key=len)
        return self.rename[longest] + key[len(longest) :]


def _fits(key: str, name: str) -> bool:
    return key.startswith(name) if name.endswith(".") else key == name


def renamed(keys: Iterable[str], key_map: KeyMap) -> tuple[dict[str, str], tuple[str, ...]]:
    """Old key to new one, and the keys that are left out.

    Raises:
        WeightsError: two keys would become one, or a key nothing.
    """
    kept: dict[str, str] = {}
    dropped: list[str] = []
    origin: dict[str, str] = {}
    for key in keys:
        new = key_map(key)
        if new is None:
            dropped.append(key)
            continue
        if new in origin or not new:
            what = f"`{origin[new]}` and `{key}` would both" if new in origin else f"`{key}` would"
            raise WeightsError(
                f"{what} become `{new}` by the key map",
                remedy="correct `strip`, `drop` or `rename` of the map",
                code="key-map",
            )
        origin[new] = key
        kept[key] = new
    return kept, tuple(dropped)
