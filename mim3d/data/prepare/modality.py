"""What modality the channels of a cohort are: as asked, as the source says, or by a few cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mim3d.config.verbs import PrepareConfig
from mim3d.data.cohort import Cohort
from mim3d.data.prepare.earlier import modalities_before
from mim3d.data.prepare.job import Work
from mim3d.data.prepare.memory import processes_for
from mim3d.data.prepare.pool import run
from mim3d.foundation.reporting import Reporter

PEEKED = 5
"""Cases whose values are looked at where nobody says what modality they are."""


def decided(
    cohort: Cohort, work: Work, config: PrepareConfig, reporter: Reporter
) -> tuple[str | None, ...] | None:
    """The modality of each channel.

    Args:
        cohort: what the source says.
        work: of the preparation, without modalities.
        config: what is asked for.
        reporter: where it is told how it was decided.

    Returns:
        One a channel, None in a place that each case decides by its own values; None where not
        even the number of channels is known.
    """
    if config.prepare.modality != "auto":
        return _all(config.prepare.modality, cohort, work, config, reporter)
    if cohort.modalities is not None and None not in cohort.modalities:
        return cohort.modalities
    return _inferred(cohort, work, config, reporter)


def _all(
    modality: str, cohort: Cohort, work: Work, config: PrepareConfig, reporter: Reporter
) -> tuple[str, ...] | None:
    """The modality asked for, once a channel."""
    if cohort.modalities is None:
        found = _peeked(cohort, work, config, reporter)
        return (modality,) * len(found[0]) if found else None
    said = set(cohort.modalities) - {None, modality}
    if said:
        reporter.warn(f"the source says {', '.join(map(str, said))}; taken as {modality} as asked")
    return (modality,) * len(cohort.modalities)


def _inferred(
    cohort: Cohort, work: Work, config: PrepareConfig, reporter: Reporter
) -> tuple[str | None, ...] | None:
    """Modalities from the values of a few cases; None in a place where they disagree."""
    found = _peeked(cohort, work, config, reporter)
    if not found:
        return None
    channels = Counter(len(each) for each in found).most_common(1)[0][0]
    columns = zip(*(each for each in found if len(each) == channels), strict=True)
    known = cohort.modalities if cohort.modalities and len(cohort.modalities) == channels else None
    found_out: list[str | None] = []
    for number, column in enumerate(columns):
        said = known[number] if known else None
        found_out.append(said or (column[0] if len(set(column)) == 1 else None))
    if None in found_out:
        reporter.warn("some cases have the values of CT and some not: each is taken by its own "
                      "(`--prepare.modality` decides for all)")  # fmt: skip
    else:
        words = ", ".join(str(word) for word in found_out)
        reporter.say(f"modality by the values of {len(found)} case(s): {words}")
    return tuple(found_out)


def _peeked(
    cohort: Cohort, work: Work, config: PrepareConfig, reporter: Reporter
) -> Sequence[Sequence[str | None]]:
    before = modalities_before(work.folder)
    if before is not None and config.prepare.modality in ("auto", *before):
        # Decided when the store was begun: a second look must not change every key.
        return [before]
    step = max(1, len(cohort.cases) // PEEKED)
    some = cohort.cases[::step][:PEEKED]
    processes, _ = processes_for(some, len(some), config, reporter)
    answers = run("peek", some, work, processes)
    found = [answer["modalities"] for _, answer in answers if isinstance(answer, dict)]
    return [each for each in found if each]
