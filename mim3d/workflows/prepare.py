"""`mim3d prepare`: from files of scans to a store, with a sheet of all cases to look at."""

from __future__ import annotations

from pathlib import Path

from mim3d.config.verbs import PrepareConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort import apply_split
from mim3d.data.prepare import PreparationResult, prepare_store, read_source
from mim3d.data.store import Store, open_store
from mim3d.data.store.layout import CONTACT_SHEET
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.foundation.shard import asked_shard
from mim3d.pictures.colours import Paint, paints
from mim3d.pictures.contact_sheet import draw_contact_sheet, sheet_entry
from mim3d.workflows.result import Result

MOST_SHOWN = 144
"""Cases on the sheet; of more, so many at equal distances. It is made of 7 million pixels then."""


def prepare(
    source: str,
    *,
    out: str,
    config: PrepareConfig | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Prepares a cohort; running it again goes on, and prepares anew only what changed.

    Args:
        source: a folder, `dataset.json`, CSV, file or DICOM folder.
        out: the store's folder.
        config: settings of preparation and reading.
        reporter: where progress goes.
        overwrite: empty the store first, once source and settings are found good.
        dry_run: list what would be prepared, and stop.

    Returns:
        Counts, the quarantine if there is one, and the contact sheet; exit code 4 if some cases
        were refused, 3 if all were. A shard speaks of its own cases, and has no sheet and no
        quarantine; but for the one that merges the store, which speaks of all.

    Raises:
        UserError: no source, no case, another cohort's store at `out`, something else there that
            would be overwritten, or a shard that would empty the store.
    """
    config = config or PrepareConfig()
    reporter = reporter or PlainReporter()
    shard = asked_shard(config.shard, overwrite=overwrite)
    store = Path(out)
    if dry_run:
        cohort = read_source(source, config)
        if config.prepare.split is not None:
            cohort = apply_split(cohort, config.prepare.split)
        cases = cohort.cases if shard is None else shard.share(cohort.cases)
        which = "" if shard is None else f" by shard {shard}"
        told = f"{len(cases)} cases would be prepared into `{out}`{which} (--dry_run)"
        lines = [*cohort.found, told]
        lines += [f"{case.part:<11}{case.case_id}" for case in cases]
        return Result(text="\n".join(lines), facts={"cases": len(cases)})
    done = prepare_store(source, store, config, reporter, overwrite=overwrite)
    files: tuple[Path, ...] = (store,)
    if done.fingerprint and (done.prepared or done.kept or shard is not None):
        is_new = bool(done.prepared) or done.is_changed
        files += (_sheet(open_store(store), is_new=is_new),)
    if done.refused and not done.left:
        files += (store / "quarantine.tsv",)
    return Result(_text(done), _facts(done), files, done.exit_code)


def _sheet(store: Store, *, is_new: bool) -> Path:
    path = store.path / CONTACT_SHEET
    if path.is_file() and not is_new:
        return path
    entries = []
    count = len(store.cases)
    shown = min(count, MOST_SHOWN)
    for case_id in (store.cases[place * count // shown] for place in range(shown)):
        with store.open(case_id) as case:
            size = case.shape[1:]
            image = case.read_intensities((0, 0, 0), size)[0]
            _, labels = case.read((0, 0, 0), size)
            entries.append(sheet_entry(case_id, image, labels, case.spacing_mm))
    title = store.name if shown == count else f"{store.name}: {shown} of {count} cases"
    return draw_contact_sheet(path, entries, _paints(store.classes), title=title)


def _paints(classes: ClassTable | None) -> dict[int, Paint]:
    """Paint by class index, as the store's label maps have it."""
    if classes is None:
        return {}
    by_value = paints(classes)
    return {i: by_value[value] for i, value in enumerate(classes.values) if value in by_value}


def _text(done: PreparationResult) -> str:
    text = (
        f"{len(done.prepared)} cases prepared, {len(done.kept)} kept as they were, "
        f"{len(done.refused)} refused"
    )
    if done.shard is None:
        return text
    if done.left:
        return f"shard {done.shard}: {text}; the store is not whole yet"
    return f"shard {done.shard}: {text}; the store is whole"


def _facts(done: PreparationResult) -> dict[str, object]:
    return {
        "store": str(done.store),
        "prepared": list(done.prepared),
        "kept": list(done.kept),
        "refused": [vars(refusal) for refusal in done.refused],
        "seconds": done.seconds,
        "fingerprint": done.fingerprint,
        **({} if done.shard is None else {"shard": str(done.shard), "left": done.left}),
    }
