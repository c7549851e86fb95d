"""Who works on what, among several commands that fill one folder at the same time.

They meet in the folder `shards/` within it: a lock for each item that one of them is at, a lock for
whoever puts the whole together, and what they leave for each other. It goes when the work is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mim3d.foundation.atomic import sweep
from mim3d.foundation.disk import explained
from mim3d.foundation.errors import UserError
from mim3d.foundation.lock import IN_USE, FolderLock, held

FOLDER = "shards"
MERGE = "merge.lock"
ATTEMPTS = 20
"""Times that another command may remove the empty folder just before a lock is put into it."""
LOOK_SECONDS = 0.5
"""Between two looks at items that other commands are at."""

T = TypeVar("T")


class Claims:
    """The claims on the items of one folder.

    Args:
        folder: what the commands fill together; exists.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Claims an item while the block runs; False where another living command is at it.

        Args:
            name: of the item; a plain name of a file.

        Raises:
            DiskError: the claim cannot be written.
        """
        lock = self._lock(name)
        if not self._take(lock):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextlib.contextmanager
    def merging(self, tell: Callable[[str], None] | None = None) -> Iterator[None]:
        """The one command that puts the whole together, while the block runs; others wait.

        Args:
            tell: is told once what is waited for.

        Raises:
            DiskError: the lock cannot be written.
        """
        told = None if tell is None else lambda _: tell("waiting: another shard is merging")
        with contextlib.ExitStack() as stack:
            self._within(lambda: stack.enter_context(held(self.path, MERGE, tell=told)))
            yield
        with contextlib.suppress(OSError):
            self.path.rmdir()  # only if nothing is left in it

    def in_turn(
        self, items: Sequence[T], name_of: Callable[[T], str], waits: Callable[[T], None]
    ) -> Iterator[T]:
        """Each item under its claim; those that other commands are at when these are done.

        Args:
            items: to work on.
            name_of: the name of an item's claim.
            waits: is told of an item that comes later, the first time.

        Raises:
            DiskError: a claim cannot be written.
        """
        waiting, said = list(items), set[str]()
        while waiting:
            later = []
            for item in waiting:
                name = name_of(item)
                with self.claimed(name) as is_mine:
                    if is_mine:
                        yield item
                        continue
                later.append(item)
                if name not in said:
                    said.add(name)
                    waits(item)
            if len(later) == len(waiting):
                self.wait([name_of(item) for item in later])
            waiting = later

    def wait(self, names: Sequence[str]) -> None:
        """Returns when one of these items is claimed by nobody who lives."""
        while not any(self._lock(name).is_free() for name in names):
            time.sleep(LOOK_SECONDS)

    def clear(self) -> None:
        """Removes what killed commands left of their claims; called by who merges."""
        if not self.path.is_dir():
            return
        sweep(self.path)
        for path in self.path.glob("claim-*"):
            is_guard = path.suffix != ".lock"  # of one who was killed while taking a claim over
            lock = FolderLock(self.path, path.stem if is_guard else path.name)
            if lock.is_free() and self._take(lock):
                lock.release()

    def _lock(self, name: str) -> FolderLock:
        return FolderLock(self.path, f"claim-{name}.lock")

    def _take(self, lock: FolderLock) -> bool:
        try:
            self._within(lock.take)
        except UserError as error:
            if error.code != IN_USE:
                raise
            return False
        return True

    def _within(self, put: Callable[[], object]) -> None:
        """Puts something into the folder, which another command may just be removing."""
        for attempt in range(ATTEMPTS):
            with explained(self.path):
                # Not the folders above: under the name of a share that was taken away the
                # machine's own disk would take them without a word.
                self.path.mkdir(exist_ok=True)
            try:
                put()
            except UserError as error:
                if error.code != "folder-gone" or attempt == ATTEMPTS - 1:
                    raise
            else:
                return
