"""The command `mim3d`: from arguments to a workflow, its printed result and an exit code.

`mim3d --help` loads the standard library and the config's dataclasses only; a verb loads
jsonargparse and rich, and then what its workflow needs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import mim3d
from mim3d.cli.calls import Call
from mim3d.cli.line import Line, read_line
from mim3d.cli.verb import Verb
from mim3d.cli.verbs import VERBS
from mim3d.config.tree import similar
from mim3d.foundation.disk import OUTSIDE, disk_error
from mim3d.foundation.errors import ConfigError, ExitCode, Interrupted, UserError
from mim3d.foundation.memory import is_out_of_memory

if TYPE_CHECKING:
    from mim3d.workflows.result import Result

PURPOSE = (
    "3D masked image modelling on CT and MRI: pre-train a vision transformer on volumes without "
    "labels, fine-tune it to segment, and write segmentations back on the grid of each file."
)
EXAMPLES = (
    "mim3d demo",
    "mim3d prepare SOURCE --out STORE",
    "mim3d pretrain CONFIG --data.store STORE --out RUN",
    "mim3d finetune CONFIG --data.store STORE --init RUN --out SEGMENTER",
    "mim3d predict SEGMENTER scan.nii.gz --out DIR",
    "mim3d evaluate DIR LABELS --out results.json",
)
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
GPU_DEVICES = Path("/dev")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: what follows `mim3d`; the process's own by default.

    Returns:
        The exit code, as documented in `docs/reference.md`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _ending_on_signals():
            code = _run(arguments)
            sys.stdout.flush()
        return int(code)
    except BrokenPipeError:
        # Whoever read the output has seen enough (`mim3d info RUN | head`); what Python still
        # holds must not be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return int(ExitCode.CTRL_C)
    except Exception as error:
        return int(_explain(error, debug="--debug" in arguments))


def _run(arguments: list[str]) -> ExitCode:
    if not arguments:
        print(_help(), file=sys.stderr)
        return ExitCode.USAGE
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help", "help"):
        print(_help())
        return ExitCode.DONE
    if name == "--version":
        print(f"mim3d {mim3d.__version__}")
        return ExitCode.DONE
    if name not in VERBS:
        meant = similar(name, VERBS)
        remedy = f"did you mean `mim3d {meant}`?" if meant else "`mim3d --help` lists the verbs"
        raise ConfigError(f"`{name}` is not a verb of mim3d", remedy=remedy, code="unknown-verb")
    return _run_verb(name, VERBS[name], rest)


def _run_verb(name: str, verb: Verb, arguments: Sequence[str]) -> ExitCode:
    if verb.kinds:
        from mim3d.cli.kinds import with_kind

        verb = with_kind(name, verb, arguments)
    line = read_line(name, verb, arguments)
    if "version" in line.switches:
        print(f"mim3d {mim3d.__version__}")
        return ExitCode.DONE
    if "help" in line.switches:
        from mim3d.cli.options import help_text

        print(help_text(name, verb), end="")
        return ExitCode.DONE
    config, config_name, said = _config(verb, line)
    if "print_config" in line.switches:
        from mim3d.config.writing import dump, to_mapping

        print(dump(to_mapping(config)), end="")
        return ExitCode.DONE
    if verb.needs_out and "out" not in line.switches:
        raise ConfigError(
            f"`mim3d {name}` needs `--out`", remedy=f"for example `{verb.examples[0]}`"
        )
    result = _worked(verb, line, config, config_name, said)
    if _is_first_rank(os.environ):
        print(_json(result) if "json" in line.switches else result)
    return ExitCode(result.exit_code)


def _config(verb: Verb, line: Line) -> tuple[Any, str, frozenset[str]]:
    """The resolved config of a command, the name it goes by, and the keys that were said."""
    if verb.config is None:
        return None, "", frozenset()
    from mim3d.cli.options import typed_settings
    from mim3d.config.reading import read_config, said_keys

    source = line.switches.get("config") or next(iter(line.words.get("CONFIG", [])), None)
    overrides = typed_settings(verb, line)
    config: Any = read_config(source, verb.config, overrides)
    said = said_keys(source, verb.config, overrides)
    return config, Path(source).stem if source else "", said


def _worked(verb: Verb, line: Line, config: Any, config_name: str, said: frozenset[str]) -> Result:
    """Runs the verb's workflow with a display."""
    from mim3d.cli.display import Display, listening

    _choose_allocator(os.environ)
    display = Display(quiet="quiet" in line.switches, silent=not _is_first_rank(os.environ))
    call = Call(
        words=line.words,
        config=config,
        name=config_name,
        said=said,
        out=line.switches.get("out"),
        flags=frozenset(line.switches),
        reporter=display,
    )
    with listening(display, verbose="verbose" in line.switches):
        return verb.run(call)


def _json(result: Result) -> str:
    return json.dumps(result.as_json(), indent=1, ensure_ascii=False)


def _help() -> str:
    from mim3d.cli.text import listed, wrapped

    verbs = [(name, verb.summary) for name, verb in VERBS.items()]
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    parts = [
        "usage: mim3d VERB ...",
        wrapped(PURPOSE),
        listed("verbs:", verbs, indent=14),
        f"the main path:\n{examples}",
        "`mim3d VERB --help` lists what a verb takes; `mim3d --version` shows the version",
    ]
    return "\n\n".join(parts)


# How a command ends


def _explain(error: Exception, *, debug: bool) -> ExitCode:
    """Prints what went wrong to standard error; returns the exit code that says so."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, Interrupted) and _is_under_torchrun(os.environ):
        # torchrun would take any other code for a failure; `status.json` says it was interrupted.
        _complain(error)
        return ExitCode.DONE
    if isinstance(error, UserError):
        _complain(error)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        refusal = disk_error(error, Path(os.fsdecode(error.filename or "the output")))
        _complain(refusal)
        return refusal.exit_code
    if is_out_of_memory(error):
        first = str(error).strip().splitlines()[:1]
        detail = f": {first[0][:200]}" if first else ""
        remedy = "take a smaller batch, crop or window, or `--training.accumulation`"
        _complain(UserError(f"out of memory{detail}", remedy=remedy))
        return ExitCode.RESOURCES
    if not debug:
        traceback.print_exception(error)
    print(
        f"\nerror: this is a bug in mim3d {mim3d.__version__}: `{type(error).__name__}`\n\nhint: "
        "report it with the lines above, the command and the output of `mim3d doctor` as an issue "
        "of the project",
        file=sys.stderr,
    )
    return ExitCode.BUG


def _complain(error: UserError) -> None:
    """One sentence, an empty line, a hint (STYLE: what a user reads)."""
    text = f"error: {error}"
    print(f"{text}\n\nhint: {error.remedy}" if error.remedy else text, file=sys.stderr)


def _is_under_torchrun(environment: Mapping[str, str]) -> bool:
    return "TORCHELASTIC_RUN_ID" in environment or "LOCAL_RANK" in environment


def _is_first_rank(environment: Mapping[str, str]) -> bool:
    return environment.get("RANK", environment.get("SLURM_PROCID", "0")) == "0"


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Turns what schedulers send into an exit that cleans up; training listens in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: object) -> NoReturn:
        raise SystemExit(int(ExitCode.TERMINATED))

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choose_allocator(environment: MutableMapping[str, str]) -> None:
    """Huge pages for large CPU tensors; must be chosen before torch is imported."""
    has_gpu = any(GPU_DEVICES.glob("nvidia[0-9]*"))
    if sys.platform == "linux" and not has_gpu and environment.get("MIM3D_ALLOCATOR") != "system":
        environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


if __name__ == "__main__":
    sys.exit(main())
