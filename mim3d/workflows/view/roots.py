"""What may be read: the paths that were given, and what lies below them once links are followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mim3d.foundation.errors import UserError

DEEPEST = 8
"""Levels of folders that are looked through."""


@dataclass
class Roots:
    """The paths that a person gave.

    Attributes:
        given: each as it stands after following links; a file or a folder.
        left_out: what was met and leads out of them, for the person.
    """

    given: tuple[Path, ...]
    left_out: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, paths: tuple[str, ...]) -> Roots:
        """The roots of a command.

        Raises:
            UserError: one of them does not exist.
        """
        for path in paths:
            if not Path(path).exists():
                raise UserError(
                    f"`{path}` does not exist", remedy="check the path", code="missing-file"
                )
        return cls(tuple(Path(path).resolve() for path in paths))

    def holds(self, path: Path) -> bool:
        """Whether the file or folder lies under a given path, wherever links lead."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL
            return False
        return any(real == root or root in real.parents for root in self.given)

    def check(self, path: Path) -> Path:
        """The path itself, looked at again at each reading: a link may have been changed.

        Raises:
            UserError: it leads out of what was given.
        """
        if not self.holds(path):
            raise UserError(
                f"`{path.name}` leads out of the paths that were given",
                remedy="give the folder that it lies in as well: `mim3d view PATH PATH`",
                code="outside",
            )
        return path

    def listed(self, folder: Path) -> list[Path]:
        """What lies in a folder, by name; hidden things and links that lead out are left out."""
        found = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith((".", "__MACOSX")):
                continue
            if self.holds(path):
                found.append(path)
            else:
                self.left_out.append(path)
        return found

    def folders(self, top: Path) -> Iterator[tuple[Path, list[Path]]]:
        """Every folder below `top`, itself first, with what lies in it; each real folder once."""
        seen: set[Path] = set()
        left = [(top, 0)]
        while left:
            folder, depth = left.pop(0)
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            inside = self.listed(folder)
            yield folder, inside
            if depth < DEEPEST:
                left[:0] = [(path, depth + 1) for path in inside if path.is_dir()]
