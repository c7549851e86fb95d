"""Which label map of BIDS derivatives belongs to which image.

Derivatives repeat the entities of what they were drawn on: a label map fits an image of its session
unless the two differ in one that both have (`run`, `acq`, `ce`). What fits several images that are
cases of their own, as a label map that names none of several runs, is given to none of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mim3d.data.cohort.bids_names import Named, Session, named_files
from mim3d.data.cohort.cases import is_volume_name, listed, must_lie_within
from mim3d.foundation.errors import UserError

SUFFIXES = ("dseg", "seg", "mask")
"""Of label maps in derivatives, the better ones first."""
NATIVE = ("orig", "native", "scanner", "individual")
"""Spaces that are the image's own."""
OF_SUBJECT = ("T1w", "T2w", "FLAIR")
"""Spaces of one of the subject's images; others are templates'."""
OF_MAKING = frozenset(
    ("sub", "ses", "space", "res", "den", "label", "desc", "hemi", "atlas", "seg", "scale", "from",
     "to", "mode", "method")
)  # fmt: skip
"""Entities that say whose a file is or how it was made, not what it was made from."""

Rows = Mapping[str, Sequence[Named]]
"""The images of each case, a channel each."""


def labels_from_derivatives(
    source: Path, rows: Rows, glob: str | None
) -> tuple[dict[str, Path], list[str]]:
    """The label map of each case, and what is said of where they come from.

    Args:
        source: the folder of the data set.
        rows: images by case.
        glob: of the label maps below the source; None looks in `derivatives`.
    """
    files = sorted(path for path in source.glob(glob or "derivatives/**/sub-*")
                   if is_volume_name(path.name) and path.is_file())  # fmt: skip
    named = named_files(must_lie_within(path, source) for path in files)
    kinds: dict[str, list[Named]] = defaultdict(list)
    for one in named:
        if glob is not None or one.suffix in SUFFIXES:
            kinds[_kind(one, source)].append(one)
    pairs = {kind: _pairs(maps, rows) for kind, maps in kinds.items()}
    taken = {kind: found for kind, (found, _) in pairs.items() if found}
    if not taken:
        lines = _on_shared(sum(shared for _, shared in pairs.values()))
        return {}, lines or (["no label maps in `derivatives`"] if glob is None else [])
    best, *others = sorted(taken, key=lambda kind: (*_rank(taken[kind], rows), kind))
    lines = [f"labels: `{best}` of {len(taken[best])} of {len(rows)} case(s)"]
    lines += _on_shared(pairs[best][1])
    if others:
        lines.append(f"labels not taken: {listed(others)} (`--prepare.labels` takes a glob)")
    return {case_id: one.path for case_id, one in taken[best].items()}, lines


def pair_by_entities(images: Iterable[Path], labels: Iterable[Path]) -> dict[Path, Path] | None:
    """Label maps by image, each image a case; None where names are not BIDS.

    Raises:
        UserError: several label maps fit an image equally well.
    """
    try:
        pictures, maps = named_files(images, strict=True), named_files(labels, strict=True)
    except KeyError:
        return None
    pairs = {}
    for picture in pictures:
        fitting = _fitting(maps, [picture])
        if len(fitting) > 1:
            raise UserError(
                f"several label maps fit `{picture.path.name}`: "
                f"{listed(one.path.name for one in fitting)}",
                remedy="narrow `--prepare.labels` to one kind, as `derivatives/**/*_dseg.nii.gz`",
                code="unpaired-label",
            )
        if fitting:
            pairs[picture.path] = fitting[0].path
    return _without_runs(pairs, pictures)


def _without_runs(pairs: dict[Path, Path], pictures: Sequence[Named]) -> dict[Path, Path]:
    """Refuses a label map that two runs of one contrast would share."""
    first: dict[tuple[Path, str], str] = {}
    for one in pictures:
        if one.path in pairs:
            known = first.setdefault((pairs[one.path], one.contrast), one.path.name)
            if known != one.path.name:
                raise UserError(
                    f"`{pairs[one.path].name}` fits `{known}` and `{one.path.name}`, two runs",
                    remedy="name the run in the label map's name, or list the cases in a CSV with "
                    "the columns `image` and `label`",
                    code="unpaired-label",
                )
    return pairs


def _pairs(maps: Sequence[Named], rows: Rows) -> tuple[dict[str, Named], int]:
    """The label map of one kind that each case has, and how many fit several cases."""
    by_session: dict[Session, list[Named]] = defaultdict(list)
    for one in maps:
        by_session[one.session].append(one)
    fitting = {case: _fitting(by_session.get(images[0].session, ()), images)
               for case, images in rows.items()}  # fmt: skip
    single = {case: found[0] for case, found in fitting.items() if len(found) == 1}
    uses = Counter(one.path for one in single.values())
    found = {case: one for case, one in single.items() if uses[one.path] == 1}
    return found, sum(count > 1 for count in uses.values())


def _fitting(maps: Iterable[Named], images: Sequence[Named]) -> list[Named]:
    """The label maps that fit best; several where nothing tells them apart."""
    ranked = [(far, one) for one in maps if (far := _distance(one, images)) is not None]
    nearest = min((far for far, _ in ranked), default=None)
    return [one for far, one in ranked if far == nearest]


def _distance(label: Named, images: Sequence[Named]) -> tuple[int, int, int] | None:
    """Channel that a label map fits first, entities only it has, and those only the image has."""
    own = _made_from(label)
    for number, image in enumerate(images):
        other = _made_from(image)
        agrees = all(own[key] == other[key] for key in own.keys() & other.keys())
        if agrees and label.session == image.session:
            return len(own.keys() - other.keys()), number, len(other.keys() - own.keys())
    return None


def _made_from(one: Named) -> dict[str, str]:
    """Entities that tell one image of a session from another; `run-01` is `run-1`."""
    return {key: value.lstrip("0") or "0" for key, value in one.entities.items()
            if key not in OF_MAKING}  # fmt: skip


def _rank(pairs: Mapping[str, Named], rows: Rows) -> tuple[int, ...]:
    """How well one kind of label maps suits the images; the smallest is the best."""
    distances = [_distance(one, rows[case_id]) for case_id, one in pairs.items()]
    case_id, one = next(iter(pairs.items()))
    extra, number, _ = max(far for far in distances if far is not None)
    suffixes = [image.suffix for image in rows[case_id]]
    space = one.entities.get("space")
    if space is None or space in (*NATIVE, suffixes[0]):
        place = 0
    elif space in suffixes:
        place = 1
    else:
        place = 2 if space in OF_SUBJECT else 3
    kind = SUFFIXES.index(one.suffix) if one.suffix in SUFFIXES else len(SUFFIXES)
    return place, extra, number, kind, -len(pairs), len(one.rest)


def _kind(one: Named, source: Path) -> str:
    """What label maps of one making share: their folder and name without subject and session."""
    below = one.path.relative_to(source).parts
    folder = "/".join(part for part in below[:-1] if not part.startswith(("sub-", "ses-")))
    return f"{folder}/*_{one.contrast}"


def _on_shared(count: int) -> list[str]:
    if not count:
        return []
    return [f"{count} label map(s) fit several images, and are not taken: name the run in their "
            "names, or list the cases in a CSV"]  # fmt: skip
