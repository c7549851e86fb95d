"""Errors a user can cause, and the exit codes that follow from them.

Everything derived from `UserError` is shown as one sentence and a hint; every other exception is a
bug and shows its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says to its caller. Documented in `docs/reference.md`."""

    DONE = 0
    BUG = 1
    """A bug: traceback and where to report it."""
    USAGE = 2
    """The command or the config is wrong."""
    INPUT = 3
    """The input cannot be used, or every case was refused; nothing was written."""
    PARTIAL = 4
    """Finished, with some cases refused; the list is in `quarantine.tsv`."""
    RESOURCES = 5
    """Out of memory or disk; the message holds the estimate."""
    STOPPED = 6
    """Training stopped itself: non-finite, collapsed or not learning where asked to stop."""
    RESUMABLE = 75
    """Interrupted, or left alone by another process of the training; the same command goes on."""
    CTRL_C = 130
    """Interrupted by Ctrl-C without anything to save."""
    TERMINATED = 143
    """Ended by SIGTERM, SIGUSR1, SIGUSR2 or SIGXCPU without anything to save."""


class UserError(Exception):
    """What is wrong, where, and what to do about it; one sentence each, without a full stop.

    Args:
        what: what is wrong with which thing, and what was expected.
        where: the file, key or case it happened at; left out when `what` already says it.
        remedy: what to type or to change.
        code: a short slug for tables (`quarantine.tsv`), for example `cut-short`.
        exit_code: the exit code of a command that ends with this error.
    """

    exit_code = ExitCode.INPUT

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        code: str = "error",
        exit_code: ExitCode | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.code = code
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; keyword-only arguments need their own way.
        state = (self.what, self.where, self.remedy, self.code, self.exit_code)
        return (_rebuild, (type(self), *state))


def _rebuild(
    kind: type[UserError],
    what: str,
    where: str | None,
    remedy: str | None,
    code: str,
    exit_code: ExitCode,
) -> UserError:
    return kind(what, where=where, remedy=remedy, code=code, exit_code=exit_code)


class VolumeError(UserError):
    """A file that cannot be taken as a volume or label map."""


class ConfigError(UserError):
    """A command line or config that cannot be used."""

    exit_code = ExitCode.USAGE


class WeightsError(UserError):
    """Weights that do not fit the model whole; the message lists them key by key."""


class ResourceError(UserError):
    """Memory or disk does not suffice; the message holds the estimate."""

    exit_code = ExitCode.RESOURCES


class DiskError(ResourceError):
    """A file that cannot be written: what is left to do would fail alike."""


class StoppedError(UserError):
    """A run that stopped itself; its last good checkpoint is kept."""

    exit_code = ExitCode.STOPPED


class Interrupted(UserError):
    """A run that was interrupted after its checkpoint; the same command continues it."""

    exit_code = ExitCode.RESUMABLE


class ProcessLost(UserError):
    """Another process of a training is gone or hangs; the same command goes on."""

    exit_code = ExitCode.RESUMABLE


class ShapeError(ValueError):
    """An array of the wrong shape: a programmer's error, hence no `UserError`."""


def check_shape(array: object, pattern: str, where: str) -> None:
    """Raises `ShapeError` unless `array` has as many axes as `pattern` has letters.

    Args:
        array: anything with a `shape`.
        pattern: the axes by name, for example `b c x y z`.
        where: whose door it is, for the message.
    """
    shape = tuple(getattr(array, "shape", ()))
    if len(shape) != len(pattern.split()):
        raise ShapeError(f"{where} expects `{pattern}`, got the shape {shape}")
