"""The fine-tunings of a benchmark: who ran, from what, and who is compared with whom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mim3d.evaluation.convergence import Kind, Record
from mim3d.foundation.errors import UserError

Cell = tuple[str, str]
"""An arm at a label fraction."""


@dataclass(frozen=True)
class Runs:
    """All records of a benchmark, dead ones included.

    Attributes:
        records: one a fine-tuning.
        reference: arm whose best Dice sets the targets, unless a record names another partner.

    Raises:
        UserError: a run is there twice, an arm names two partners, or runs that should be
            compared were judged at other steps or on other cases.
    """

    records: tuple[Record, ...]
    reference: str = "scratch"

    def __post_init__(self) -> None:
        seen: dict[tuple[str, str, int], Record] = {}
        for record in self.records:
            key = (record.arm, record.labels, record.replicate)
            if key in seen:
                raise UserError("two records of the same run", where=record.name, code="twice")
            seen[key] = record
            said = self._said_partners.get(record.arm)
            if record.against not in (None, said):
                raise UserError(
                    f"compared with `{record.against}`, other runs of the arm with `{said}`",
                    where=record.name,
                    remedy="remove the records of one of the two, and make them again",
                    code="other-partner",
                )
        for labels in self.labels:
            self._check(labels)

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms in the order of their first record."""
        return tuple(dict.fromkeys(record.arm for record in self.records))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label fractions, fewest subjects first."""
        most: dict[str, int] = {}
        for record in self.records:
            most[record.labels] = max(record.subjects, most.get(record.labels, 0))
        return tuple(sorted(most, key=lambda labels: (most[labels], labels)))

    @cached_property
    def dead(self) -> tuple[Record, ...]:
        """Runs that are listed and not averaged in."""
        return tuple(record for record in self.records if record.why_dead is not None)

    @cached_property
    def _alive(self) -> dict[tuple[str, str], dict[int, Record]]:
        table: dict[tuple[str, str], dict[int, Record]] = {}
        for record in sorted(self.records, key=lambda record: record.replicate):
            if record.why_dead is None:
                table.setdefault((record.arm, record.labels), {})[record.replicate] = record
        return table

    def runs(self, arm: str, labels: str) -> dict[int, Record]:
        """The sound runs of an arm at a label fraction, by replicate."""
        return self._alive.get((arm, labels), {})

    def present(self, labels: str) -> tuple[str, ...]:
        """Arms with at least one sound run at a label fraction."""
        return tuple(arm for arm in self.arms if self.runs(arm, labels))

    def kind(self, arm: str) -> Kind:
        """What the arm's pre-training asks."""
        return next(record.kind for record in self.records if record.arm == arm)

    @cached_property
    def _said_partners(self) -> dict[str, str]:
        said: dict[str, str] = {}
        for record in self.records:
            if record.against is not None:
                said.setdefault(record.arm, record.against)
        return said

    def partner(self, arm: str) -> str:
        """Whose best Dice sets the arm's targets, and with which it is compared.

        The one that its records name, otherwise the reference. An arm from scratch that others
        name is its own partner, and so is the reference.
        """
        said = self._said_partners.get(arm)
        if said is not None or arm not in self._said_partners.values():
            return said or self.reference
        return arm if self.kind(arm) == "scratch" else self.reference

    def contrastive(self, labels: str, partner: str) -> tuple[str, ...]:
        """Contrastive arms at a label fraction that are compared with this partner."""
        return tuple(
            arm
            for arm in self.present(labels)
            if self.kind(arm) == "contrastive" and self.partner(arm) == partner
        )

    def pretrainings(self, arm: str, labels: str) -> int:
        """Different pre-trainings behind the sound runs of an arm."""
        runs = self.runs(arm, labels).values()
        return len({run.pretraining.run for run in runs if run.pretraining is not None})

    def judged_subjects(self, arm: str, labels: str) -> int:
        """Different subjects that the sound runs of an arm were judged on."""
        runs = self.runs(arm, labels).values()
        return len({subject for run in runs for subject in run.case_subjects})

    def shared(self, *cells: Cell) -> tuple[int, ...]:
        """Replicates that all of the cells have."""
        sets = [set(self.runs(*cell)) for cell in cells]
        return tuple(sorted(set.intersection(*sets))) if sets else ()

    def _check(self, labels: str) -> None:
        """Sound runs of one arm share their steps, those of one replicate their cases."""
        judged: dict[int, Record] = {}
        for arm in self.present(labels):
            runs = list(self.runs(arm, labels).values())
            for record in runs:
                if record.steps != runs[0].steps:
                    raise UserError(
                        "judged at other steps than the arm's other runs",
                        where=record.name,
                        remedy="remove the record and its run, and make them again",
                        code="other-steps",
                    )
                first = judged.setdefault(record.replicate, record)
                pairs = set(zip(record.cases, record.case_subjects, strict=True))
                if pairs != set(zip(first.cases, first.case_subjects, strict=True)):
                    raise UserError(
                        f"judged on other cases than {first.name}",
                        where=record.name,
                        remedy="runs of one replicate need the same cases to be compared",
                        code="other-cases",
                    )
