"""What `mim3d doctor PATH` finds: every checksum, and what a folder lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mim3d.config.nodes import load, text_of
from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter

State = Literal["ok", "note", "warn", "fail"]
CONFIG = "config.yaml"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    state: State
    text: str


def verified(path: Path, reporter: Reporter) -> Iterator[Finding]:
    """Verifies a store, a run or a hub folder.

    Raises:
        UserError: the folder is none of these, or a store without a sound manifest.
    """
    from mim3d.models.saved import is_hub

    if (path / "manifest.json").is_file():
        yield from _store(path, reporter)
    elif (path / CONFIG).is_file():
        yield from _run(path)
    elif is_hub(path):
        yield from _hub(path)
    else:
        raise UserError(
            f"`{path}` is neither a store, a run nor a hub folder",
            remedy="give a folder that `mim3d prepare`, `pretrain`, `finetune`, `convert` or "
            "`export` wrote",
            code="not-ours",
        )


def _store(path: Path, reporter: Reporter) -> Iterator[Finding]:
    from mim3d.data.store import open_store

    store = open_store(path)
    for done, case_id in enumerate(store.cases):
        reporter.progress(done, len(store.cases), f"verifying {case_id}")
        for wrong in store.verify([case_id]).values():
            yield Finding(case_id, "fail", wrong)
    for name, wrong in store.verify_tables().items():
        yield Finding(name, "fail", wrong)
    yield Finding("store", "ok", f"{len(store.cases)} cases read to the end")


def _run(path: Path) -> Iterator[Finding]:
    from mim3d.workflows.run_record import PREPARATION
    from mim3d.workflows.run_weights import INIT

    yield _last(path)
    if (path / "checkpoints" / "best").is_symlink():
        yield _of("best", lambda: _checkpoint(path, "best"))
    yield _of(PREPARATION, lambda: _preparation(path))
    yield _of(CONFIG, lambda: _config(path))
    if (path / INIT).is_file():
        yield _of(INIT, lambda: _init(path / INIT))
    elif _began_elsewhere(path):
        yield Finding(INIT, "warn", "is missing: it says which encoder the run began with")


def _hub(path: Path) -> Iterator[Finding]:
    from mim3d.models.saved import HUB_RUN, HUB_WEIGHTS, read_hub
    from mim3d.workflows.run_record import PREPARATION

    yield _of(HUB_WEIGHTS, lambda: f"checksum of step {read_hub(path).step:,} agrees")
    yield _of(PREPARATION, lambda: _preparation(path))
    yield _of(HUB_RUN, lambda: _config(path, HUB_RUN))


def _of(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except UserError as error:
        return Finding(name, "fail", str(error))


def _last(path: Path) -> Finding:
    """The checkpoint that everything goes on with; a run that just began has none."""
    folder = path / "checkpoints"
    if (folder / "last").is_symlink():
        return _of("last", lambda: _checkpoint(path, "last"))
    if folder.is_dir() and any(one.name.isdigit() for one in folder.iterdir()):
        return Finding("last", "fail", "is missing, though there are checkpoints: restore the "
                       "link; its target is the name of the latest folder beside it")  # fmt: skip
    if (path / "results.json").is_file():
        return Finding("last", "fail", "is missing, though the run is done")
    return Finding("last", "warn", "is missing: the run has no checkpoint yet")


def _checkpoint(path: Path, which: str) -> str:
    from mim3d.training.checkpoints import Checkpoints, read_state, read_weights

    found = Checkpoints(path / "checkpoints").find(which)
    assert found is not None
    read_weights(found)
    read_state(found)
    return f"checksums of step {int(found.name):,} agree"


def _preparation(path: Path) -> str:
    from mim3d.workflows.run_record import load_preparation

    load_preparation(path)
    return "its checksum agrees"


def _config(path: Path, name: str = CONFIG) -> str:
    from mim3d.workflows.run_record import load_preparation

    try:
        verb = load_preparation(path)["verb"]
    except UserError:  # which is said in a line of its own
        load(text_of(path / name))
        return "it is YAML; which settings it may have, the record would say"
    read_config(path / name, FinetuneConfig if verb == "finetune" else PretrainConfig)
    return "it can be read"


def _began_elsewhere(path: Path) -> bool:
    try:
        config = load(text_of(path / CONFIG))
    except UserError:
        return False
    return isinstance(config, dict) and config.get("init") not in (None, "none")


def _init(path: Path) -> str:
    digest = read_object(path).get("encoder_digest")
    if not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
        raise UserError(
            f"`{path.name}` has no digest of an encoder",
            where=str(path),
            remedy="restore the file; it says which encoder the run began with",
            code="run-damaged",
        )
    return f"the run began with encoder {digest[:12]}"
