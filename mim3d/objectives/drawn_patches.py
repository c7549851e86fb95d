"""Patch sizes drawn for each step of a masked pretext task, so that one encoder serves all of them.

After FlexiViT (Beyer et al., arXiv:2212.08013). Weights are kept for `encoder.patch`; a step in
which another size is drawn resizes embedding and head (`models.resize`) and learns through that.
"""

from __future__ import annotations

from collections.abc import Sequence

from mim3d.config.data import Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.foundation.errors import ConfigError
from mim3d.objectives.base import Moment
from mim3d.objectives.masks import ratio_range
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import count

ABLE = ("mae", "simmim")
"""`objective.name` of the tasks that can."""


def drawn_patch(patches: Sequence[Triple], moment: Moment) -> Triple:
    """The size of a step: it follows from seed and step alone, in every process and micro-batch."""
    return patches[int(moment.random.generator(0, "patch").integers(len(patches)))]


def named(patch: Triple) -> str:
    """A size as it stands in the names of logs: `16x16x4`."""
    return "x".join(map(str, patch))


def check_patches(
    objective: PretextConfig, encoder: EncoderConfig, crop_sizes: Sequence[Triple] = ()
) -> None:
    """Refuses `objective.patches` with which some step could not be taken.

    Args:
        objective: the pretext task.
        encoder: the encoder's section.
        crop_sizes: voxels of the crops along x, y, z, where they are known.

    Raises:
        ConfigError: the task or the stem has one size of patch only, a side is not positive, or a
            size leaves so few tokens of a crop that all are masked, or none.
    """
    patches = objective.patches
    if not patches:
        return
    if objective.name not in ABLE:
        raise ConfigError(
            f"`objective.patches` is not for `objective.name {objective.name}`",
            remedy="use `objective.name mae` or `simmim`, or leave it out",
            code="patches",
        )
    if encoder.stem == "convolutional":
        raise ConfigError(
            "`objective.patches` is not for `encoder.stem convolutional`, whose stages are made "
            "for one size of patch",
            remedy="use `--encoder.stem patches`, or leave it out",
            code="patches",
        )
    if any(side < 1 for patch in patches for side in patch):
        raise ConfigError(
            f"`objective.patches` has a side below 1 in {list(map(list, patches))}",
            remedy="write voxels along x, y, z: `[[8, 8, 8], [16, 16, 4]]`",
            code="patches",
        )
    for patch in patches:
        for size in crop_sizes:
            _check_tokens(objective, patch, size)


def _check_tokens(objective: PretextConfig, patch: Triple, size: Triple) -> None:
    n = TokenGrid.over(size, patch).n
    lowest, highest = ratio_range(objective)
    dropped = count(objective.drop_ratio, n, objective.rounding)
    asked = n - dropped if objective.visible_weight > 0 else 0
    asked = max(asked, count(lowest, n, objective.rounding))
    masked = count(highest, n, objective.rounding)
    if asked > 0 and masked + dropped < n:
        return
    masked = masked if asked > 0 else 0
    tokens = "1 token" if n == 1 else f"{n} tokens"
    raise ConfigError(
        f"a patch of {' x '.join(map(str, patch))} in `objective.patches` leaves {tokens} of a "
        f"crop of {' x '.join(map(str, size))}, of which {masked} would be masked",
        remedy="take a smaller patch, larger crops or another `objective.mask_ratio`",
        code="patches",
    )
