"""What one fine-tuning of a convergence benchmark left behind, as it is written and read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args

from mim3d.foundation.errors import UserError

FORMAT = 1
Kind = Literal["scratch", "masked", "contrastive", "other"]


@dataclass(frozen=True)
class Pretraining:
    """What was paid before a fine-tuning began.

    Attributes:
        run: name of the run's folder; fine-tunings from the same run name it alike.
        method: pretext task, as the config has it.
        seed: of the run.
        steps: optimiser steps.
        flop: floating-point operations of training, all together.
        seconds: of training, without evaluation.
        dead: why nothing that comes from this run is averaged in; None for a sound one.
        facts: what is worth printing beside it, for example the final loss, rank and probes.
        machine: what it ran on, in one short line; None in records that do not say.
        made_by: versions that made it, in one short line; None in records that do not say.
    """

    run: str
    method: str
    seed: int
    steps: int
    flop: float
    seconds: float
    dead: str | None
    facts: dict[str, float]
    machine: str | None = None
    made_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields; a fact that is not finite becomes null."""
        facts = {
            name: value if math.isfinite(value) else None for name, value in self.facts.items()
        }
        return {**vars(self), "facts": facts}

    @classmethod
    def from_json(cls, content: object) -> Pretraining:
        """The way back; a fact that is null becomes NaN.

        Raises:
            UserError: a field is missing, unknown or of the wrong kind.
        """
        read = _Reading(content, cls, "pretraining")
        facts = read.mapping("facts")
        return cls(
            run=read.text("run"),
            method=read.text("method"),
            seed=read.whole("seed"),
            steps=read.whole("steps"),
            flop=read.amount("flop"),
            seconds=read.amount("seconds"),
            dead=read.text_or_none("dead"),
            facts={
                str(name): math.nan if value is None else _number(value, f"facts.{name}")
                for name, value in facts.items()
            },
            machine=read.text_or_none("machine"),
            made_by=read.text_or_none("made_by"),
        )


@dataclass(frozen=True)
class Record:
    """One fine-tuning, judged on whole volumes at fixed steps.

    Attributes:
        arm: row of the tables, for example `scratch` or `mae`.
        labels: label fraction or number of subjects as it was typed.
        subjects: how many subjects with labels that is.
        replicate: names the draw of labels and the initialisation; runs of other arms with the
            same replicate are paired with this one.
        fold: on whose subjects it was judged; None for the stored validation list.
        steps: optimiser steps at which it was judged, growing; 0 may be the first.
        cases: judged cases.
        case_subjects: whom each case belongs to.
        dice: `steps cases`, mean over the structures, 0 to 1.
        zeroed: mean Dice at the last step with the encoder's output set to zero, in records
            without `zeroed_cases`; None: not done.
        seconds: of training, without evaluation.
        flop: floating-point operations of training, all together.
        lr: learning rate it ran with.
        kind: what the arm's pre-training asks.
        pretraining: what was paid before; None from scratch.
        dead: why it is not averaged in; None for a sound run. A dead run may have no curve.
        against: arm whose best Dice sets the targets of this one, and with which it is compared;
            None for the study's reference; its own name for no other arm.
        zeroed_cases: `cases`, Dice at the last step with the encoder's output set to zero, as in
            `dice[-1]`; None: not done.
        machine: what it ran on, in one short line; None in records that do not say.
        made_by: versions that made it, in one short line; None in records that do not say.
        warmup_steps: until it had that learning rate; None in records that do not say.

    Raises:
        UserError: the curve does not fit the steps or the cases, or is not finite.
    """

    arm: str
    labels: str
    subjects: int
    replicate: int
    fold: int | None
    steps: tuple[int, ...]
    cases: tuple[str, ...]
    case_subjects: tuple[str, ...]
    dice: tuple[tuple[float, ...], ...]
    zeroed: float | None
    seconds: float
    flop: float
    lr: float
    kind: Kind
    pretraining: Pretraining | None
    dead: str | None
    against: str | None = None
    zeroed_cases: tuple[float, ...] | None = None
    machine: str | None = None
    made_by: str | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UserError(problem, where=self.name, code="bad-record")

    @property
    def name(self) -> str:
        """Which run this is, in words."""
        return f"`{self.arm}` with labels {self.labels}, replicate {self.replicate}"

    @property
    def why_dead(self) -> str | None:
        """Why it is not averaged in: its own reason or that of its pre-training."""
        if self.dead is not None or self.pretraining is None or self.pretraining.dead is None:
            return self.dead
        return f"pre-training: {self.pretraining.dead}"

    def as_json(self) -> dict[str, Any]:
        """What the file of a record holds."""
        pretraining = None if self.pretraining is None else self.pretraining.as_json()
        return {"format": FORMAT, **vars(self), "pretraining": pretraining}

    @classmethod
    def from_json(cls, content: object) -> Record:
        """The way back.

        Raises:
            UserError: another format, or a field is missing, unknown or of the wrong kind.
        """
        read = _Reading(content, cls, "record", extra=("format",))
        if read.whole("format") != FORMAT:
            raise UserError(
                f"a record of format {read.whole('format')}, this version reads format {FORMAT}",
                code="other-format",
            )
        before = read.content["pretraining"]
        return cls(
            arm=read.text("arm"),
            labels=read.text("labels"),
            subjects=read.whole("subjects"),
            replicate=read.whole("replicate"),
            fold=read.whole_or_none("fold"),
            steps=tuple(read.whole_of(step, "steps") for step in read.items("steps")),
            cases=read.texts("cases"),
            case_subjects=read.texts("case_subjects"),
            dice=tuple(
                tuple(_number(value, "dice") for value in read.items_of(row, "dice"))
                for row in read.items("dice")
            ),
            zeroed=None if read.content["zeroed"] is None else read.amount("zeroed"),
            seconds=read.amount("seconds"),
            flop=read.amount("flop"),
            lr=read.amount("lr"),
            kind=read.one_of("kind", get_args(Kind)),
            pretraining=None if before is None else Pretraining.from_json(before),
            dead=read.text_or_none("dead"),
            against=read.text_or_none("against"),
            zeroed_cases=read.numbers_or_none("zeroed_cases"),
            machine=read.text_or_none("machine"),
            made_by=read.text_or_none("made_by"),
            warmup_steps=read.whole_or_none("warmup_steps"),
        )

    def _problem(self) -> str | None:
        """What is wrong with the curve, as a sentence; None if nothing is."""
        if len(self.cases) != len(self.case_subjects):
            return f"{len(self.cases)} cases but {len(self.case_subjects)} subjects of cases"
        if len(set(self.cases)) != len(self.cases):
            return "a case is named twice"
        if len(self.dice) != len(self.steps):
            return f"Dice at {len(self.dice)} steps, expected {len(self.steps)}"
        if any(len(row) != len(self.cases) for row in self.dice):
            return f"a step has Dice of another number of cases than {len(self.cases)}"
        if any(
            later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)
        ):
            return "`steps` must grow"
        if self.steps and self.steps[0] < 0:
            return "`steps` must not be negative"
        if not all(0 <= value <= 1 for row in self.dice for value in row):
            return "Dice must lie in 0 to 1"
        if self.zeroed_cases is not None and len(self.zeroed_cases) != len(self.cases):
            return f"{len(self.zeroed_cases)} zeroed Dice of {len(self.cases)} cases"
        if not all(0 <= value <= 1 for value in self.zeroed_cases or ()):
            return "Dice must lie in 0 to 1"
        if self.why_dead is None and not (self.steps and self.cases):
            return "a run that is not dead needs a curve over at least one case"
        return None


class _Reading:
    """Takes typed fields out of a JSON object that must have exactly those of a dataclass.

    A field with a default may be left out: an older version did not write it.
    """

    def __init__(
        self, content: object, kind: type[Any], what: str, extra: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(content, Mapping):
            raise UserError(f"a {what} must be a JSON object", code="bad-record")
        defaults = {field.name: field.default for field in fields(kind)}
        needed = {*extra, *(name for name in defaults if defaults[name] is MISSING)}
        for word, names in (
            ("lacks", needed - set(content)),
            ("has the unknown field", set(content) - needed - set(defaults)),
        ):
            if names:
                listed = ", ".join(f"`{name}`" for name in sorted(map(str, names)))
                raise UserError(f"a {what} {word} {listed}", code="bad-record")
        left_out = {name: defaults[name] for name in set(defaults) - set(content)}
        self.content: Mapping[str, Any] = {**content, **left_out}

    def text(self, name: str) -> str:
        return self._text_of(self.content[name], name)

    def text_or_none(self, name: str) -> str | None:
        return None if self.content[name] is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._text_of(item, name) for item in self.items(name))

    def numbers_or_none(self, name: str) -> tuple[float, ...] | None:
        if self.content[name] is None:
            return None
        return tuple(_number(item, name) for item in self.items(name))

    def whole(self, name: str) -> int:
        return self.whole_of(self.content[name], name)

    def whole_or_none(self, name: str) -> int | None:
        return None if self.content[name] is None else self.whole(name)

    def amount(self, name: str) -> float:
        value = _number(self.content[name], name)
        if value < 0:
            raise _wrong(name, "a number of at least 0")
        return value

    def one_of(self, name: str, allowed: tuple[Any, ...]) -> Any:
        if self.content[name] not in allowed:
            raise _wrong(name, " or ".join(f"`{word}`" for word in allowed))
        return self.content[name]

    def mapping(self, name: str) -> Mapping[str, Any]:
        if not isinstance(self.content[name], Mapping):
            raise _wrong(name, "a JSON object")
        return self.content[name]  # type: ignore[no-any-return]

    def items(self, name: str) -> list[Any]:
        return self.items_of(self.content[name], name)

    @staticmethod
    def items_of(value: object, name: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise _wrong(name, "a list")
        return list(value)

    @staticmethod
    def whole_of(value: object, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, "a whole number")
        return value

    @staticmethod
    def _text_of(value: object, name: str) -> str:
        if not isinstance(value, str):
            raise _wrong(name, "text")
        return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, "a finite number")
    return float(value)


def _wrong(name: str, expected: str) -> UserError:
    return UserError(f"`{name}` of a record must be {expected}", code="bad-record")
