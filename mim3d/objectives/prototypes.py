"""What self-distillation compares student and teacher over: how near they come to prototypes.

Cosines with k learned directions become two distributions, one sharp and centred from the teacher,
and the student minimises the cross-entropy between them (Caron et al., arXiv:2104.14294).
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.objective import TeacherConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.gathering import world
from mim3d.objectives.base import Moment
from mim3d.objectives.heads import Projector
from mim3d.objectives.health import LENGTH_EPSILON

SMALLEST_VARIANCE = 1e-10
"""Below it answers differ by rounding."""
WARM_UP = 1 / 3
"""Share of a run after which the teacher's temperature has arrived."""


class PrototypeHead(nn.Module):
    """Cosines of features with prototypes: projector, length 1, directions of length 1.

    Prototypes have no length of their own: a learned one lets the head collapse (`norm_last_layer`
    of the published code). Stores `projector.*` and `directions` (`k e`).

    Args:
        width: of a feature.
        config: `head_width`, `head_depth`, `bottleneck` (e) and `prototypes` (k).
    """

    def __init__(self, width: int, config: TeacherConfig) -> None:
        super().__init__()
        self.projector = Projector(width, config.head_width, config.head_depth, config.bottleneck)
        directions = torch.empty(config.prototypes, config.bottleneck)
        self.directions = nn.Parameter(nn.init.trunc_normal_(directions, std=0.02))

    def forward(self, features: Tensor) -> Tensor:
        """`... width` to `... k`, each -1 to 1."""
        return self.cosines(self.embedded(features))

    def embedded(self, features: Tensor) -> Tensor:
        """`... width` to `... e`, float32 of length 1."""
        return F.normalize(self.projector(features).float(), dim=-1, eps=LENGTH_EPSILON)

    def centre(self, config: TeacherConfig) -> Centre:
        """For cosines of this head: those of evenly spread directions have variance 1/e."""
        return Centre(config.prototypes, config.centre_momentum, 1 / config.bottleneck)

    def cosines(self, embedding: Tensor) -> Tensor:
        """`... e` to `... k`."""
        return F.linear(embedding, F.normalize(self.directions, dim=-1, eps=LENGTH_EPSILON))


class Centre(nn.Module):
    """A running mean of what a teacher answers, taken off it: what all crops have in common.

    Micro-batches and processes of a step add up to one mean; looks from outside leave none behind.
    Stores `mean` (`k`), 0 at the start, and `variance` around it over crops and numbers alike.

    Args:
        width: k, of an answer; of cosines with prototypes their number.
        momentum: decay of both, 0 to 1 (arXiv:2104.14294, eq. 4).
        variance: that of a healthy answer, and the one at the start.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, momentum: float, variance: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.tensor(variance))
        self.healthy = variance
        self.momentum = momentum
        self._noted: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def note(self, answers: Tensor, weights: Tensor | None, moment: Moment) -> None:
        """Adds what the teacher answered in a micro-batch, in training only.

        Args:
            answers: `b n k`.
            weights: `b n`, not negative; none is all alike.
            moment: a step that was begun before and never updated is forgotten.
        """
        if not self.training:
            return
        rows = answers.float().flatten(0, 1)
        each = rows.new_ones(len(rows)) if weights is None else weights.float().flatten()
        square = (rows - self.mean).square().mean(dim=1)
        sums = torch.cat([each @ rows, (each @ square)[None], each.sum()[None]])
        if self._noted is not None and self._noted[0] == moment.step:
            sums = sums + self._noted[1]
        self._noted = (moment.step, sums)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean; every process must call, once after each step."""
        if self._noted is None:
            return
        (_, sums), self._noted = self._noted, None
        if world() > 1:
            dist.all_reduce(sums)
        total = sums[-1]
        share = (1 - self.momentum) * (total > 0)  # nothing counted moves nothing
        means = sums[:-1] / total.clamp_min(torch.finfo(sums.dtype).tiny)
        self.mean.lerp_(means[:-1], share)
        self.variance.lerp_(means[-1], share)

    def taken_off(self, answers: Tensor) -> Tensor:
        """Answers `... k` around 0, float32, stretched to the healthy variance."""
        stretch = (self.healthy / self.variance.clamp_min(SMALLEST_VARIANCE)).sqrt()
        return (answers.float() - self.mean) * stretch


def taught(cosines: Tensor, centre: Centre, temperature: float) -> Tensor:
    """The teacher's distribution, `... k` float32: `softmax(f (z - centre) / temperature)`.

    The factor f makes answers as sharp as those of embeddings that are spread evenly over the
    sphere. With f = 1, as published, crops that look alike get answers that are nearly even, the
    student answers evenly, the teacher follows, and all collapse: on the hippocampus, with 8 crops
    a step, within 50 steps.
    """
    return (centre.taken_off(cosines) / temperature).softmax(dim=-1)


def disagreement(cosines: Tensor, answer: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student under the teacher's answer, `...` float32 in nats.

    Args:
        cosines: the student's, `... k`.
        answer: the teacher's distribution, `... k`.
        temperature: divides the student's cosines.
    """
    return -(answer * (cosines.float() / temperature).log_softmax(dim=-1)).sum(dim=-1)


def entropy(answer: Tensor) -> Tensor:
    """Mean entropy of distributions `... k` as a share of log k: 1 is undecided, 0 is certain."""
    nats: Tensor = torch.special.entr(answer).sum(dim=-1).mean()
    return (nats / math.log(answer.shape[-1])).detach()


def temperature_at(moment: Moment, config: TeacherConfig) -> float:
    """The teacher's temperature at a step: linear to its end over the first third of the run."""
    first, last = config.teacher_temperature
    return first + (last - first) * min(1.0, moment.step / moment.steps / WARM_UP)


def check_teacher(config: TeacherConfig) -> None:
    """Raises `ConfigError` for numbers with which nothing can be taught."""
    wrong = {
        "views": config.views not in (1, 2),
        "prototypes": config.prototypes < 2,
        "bottleneck": config.bottleneck < 2,
        "head_width": config.head_width < 1,
        "head_depth": config.head_depth < 1,
        "student_temperature": config.student_temperature <= 0,
        "teacher_temperature": min(config.teacher_temperature) <= 0,
        "momentum": not 0 <= config.momentum <= 1,
        "centre_momentum": not 0 <= config.centre_momentum <= 1,
        "voxel_weight": config.voxel_weight < 0,
        "token_weight": config.token_weight < 0,
        "global_weight": config.global_weight < 0,
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            value = getattr(config, name)
            raise ConfigError(
                f"`objective.teacher.{name}` is {value}, with which nothing is taught", code="range"
            )
