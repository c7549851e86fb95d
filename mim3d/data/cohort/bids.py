"""BIDS: contrasts of a session as channels, label maps from `derivatives`.

Source: Brain Imaging Data Structure 1.10, bids-specification.readthedocs.io: names are entities and
a suffix, `sub-01_ses-1_acq-fast_T1w.nii.gz`; derivatives repeat the entities of their source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mim3d.data.cohort.bids_labels import SUFFIXES as LABEL_SUFFIXES
from mim3d.data.cohort.bids_labels import labels_from_derivatives
from mim3d.data.cohort.bids_names import Named, Session, named_files
from mim3d.data.cohort.cases import (
    Case,
    Cohort,
    is_volume_name,
    listed,
    must_lie_within,
    remark_on_ids,
    unique_ids,
)
from mim3d.foundation.errors import UserError

FOLDERS = ("anat", "pet", "ct")
"""Data types whose files are volumes; time series and diffusion are no contrasts."""
IMAGES = tuple(f"sub-*/{session}{kind}/sub-*" for session in ("", "ses-*/") for kind in FOLDERS)


def is_bids(source: Path) -> bool:
    """Whether volumes with BIDS names lie where BIDS has them."""
    return any(is_volume_name(path.name) for glob in IMAGES for path in source.glob(glob))


def read_bids(
    source: Path, contrasts: Sequence[str] | None = None, labels: str | None = None
) -> Cohort:
    """The sessions of a BIDS data set.

    Args:
        source: its folder.
        contrasts: suffixes that become channels, in this order; None takes those that every session
            has. Of one contrast every file is a case, of several every session.
        labels: glob of the label maps below the folder; None looks in `derivatives` for the kind
            that most cases have.

    Raises:
        UserError: no volume, or no session with all of `contrasts`.
    """
    paths = [path for glob in IMAGES for path in source.glob(glob) if is_volume_name(path.name)]
    every = named_files(sorted(must_lie_within(path, source) for path in paths))
    images = [one for one in every if one.suffix not in LABEL_SUFFIXES]
    by_session = _by_session(images)
    chosen, found = _chosen(by_session, contrasts, source)
    remarks: tuple[str, ...] = ()
    if len(chosen) == 1:
        files = [one for group in by_session.values() for one in group.get(chosen[0], [])]
        ids = unique_ids([one.path for one in files], source)
        remarks = remark_on_ids([one.path for one in files])
        rows = {case_id: [one] for case_id, one in zip(ids, files, strict=True)}
    else:
        rows = {
            _id(session): [group[name][0] for name in chosen]
            for session, group in by_session.items()
            if all(name in group for name in chosen)
        }
        remarks = _on_runs(by_session, chosen)
    maps, told = labels_from_derivatives(source, rows, labels)
    cases = tuple(
        Case(case_id, f"sub-{files[0].session[0]}", tuple(one.path for one in files),
             maps.get(case_id))
        for case_id, files in rows.items()
    )  # fmt: skip
    return Cohort(
        "", cases, "BIDS", tuple(chosen), remarks=remarks, source=str(source),
        found=(*found, *told),
    )  # fmt: skip


def _by_session(images: Iterable[Named]) -> dict[Session, dict[str, list[Named]]]:
    """Files by session and contrast; a contrast is a suffix alone where that tells all apart."""
    images = list(images)
    kinds = defaultdict(set)
    for one in images:
        kinds[one.session, one.suffix].add(one.rest)
    ambiguous = {suffix for (_, suffix), rests in kinds.items() if len(rests) > 1}
    groups: dict[Session, dict[str, list[Named]]] = defaultdict(lambda: defaultdict(list))
    for one in images:
        name = one.contrast if one.suffix in ambiguous else one.suffix
        groups[one.session][name].append(one)
    return {session: dict(groups[session]) for session in sorted(groups)}


def _chosen(
    groups: Mapping[Session, Mapping[str, Sequence[Named]]],
    asked: Sequence[str] | None,
    source: Path,
) -> tuple[list[str], list[str]]:
    """The contrasts that become channels, and what is said of it."""
    counts = Counter(name for group in groups.values() for name in group)
    table = ", ".join(f"`{name}` in {counts[name]}" for name in sorted(counts))
    lines = [f"contrasts of {len(groups)} session(s): {table}"]
    unknown = [name for name in asked or () if name not in counts]
    whole = sum(all(name in group for name in asked or ()) for group in groups.values())
    if asked and (unknown or not whole):
        what = f"no session has {listed(unknown)}" if unknown else "no session has all of them"
        raise UserError(
            f"the contrasts {listed(asked, 9)} make no case: {what}",
            where=str(source),
            remedy=f"`--prepare.contrasts` takes some of {', '.join(sorted(counts))}",
            code="contrasts",
        )
    if asked:
        left = len(groups) - whole
        return list(asked), [*lines, *([f"{left} session(s) lack one of them"] if left else [])]
    chosen = sorted(name for name, count in counts.items() if count == len(groups))
    chosen = chosen or [min(counts, key=lambda name: (-counts[name], name))]
    rest = sorted(set(counts) - set(chosen))
    if rest:
        lines.append(
            f"taken: {listed(chosen, 9)}, which {'all have' if len(chosen) > 1 else 'most have'}; "
            f"not taken: {listed(rest, 9)} (`--prepare.contrasts` chooses)"
        )
    return chosen, lines


def _on_runs(
    groups: Mapping[Session, Mapping[str, Sequence[Named]]], chosen: Sequence[str]
) -> tuple[str, ...]:
    several = sum(len(group.get(name, ())) > 1 for group in groups.values() for name in chosen)
    if not several:
        return ()
    return (f"{several} contrast(s) of a session were taken several times: the first run counts; "
            "`--prepare.pattern` makes a case of every file of a contrast",)  # fmt: skip


def _id(session: Session) -> str:
    subject, visit = session
    return f"sub-{subject}" + (f"_ses-{visit}" if visit else "")
