"""What of a fine-tuning learns: the encoder made ready as `optim.adapt` says, and the counts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.reporting import Reporter
from mim3d.models.low_rank import adapt
from mim3d.objectives.base import Task
from mim3d.training.optim import trainable
from mim3d.workflows.assembly import initialising
from mim3d.workflows.initial import is_fresh

STAYS = {
    "frozen": "its features stay as they are",
    "lora": "low-rank adapters learn beside maps that stay, and are added to them when written",
}
"""What is said of each word of `optim.adapt` but `full`."""


def adapt_encoder(encoder: nn.Module, config: FinetuneConfig, reporter: Reporter) -> None:
    """Leaves of an encoder that which `optim.adapt` says for learning.

    Its weights are loaded before. The adapters follow from the seed alone.

    Args:
        encoder: changed in place.
        config: of the fine-tuning.
        reporter: is warned where nothing was learned that could be kept.

    Raises:
        ConfigError: rank, scale or list of maps make no adapter.
    """
    with initialising(config.training.seed, "low_rank"):
        adapt(encoder, config.optim)
    if config.optim.adapt != "full" and is_fresh(config):
        reporter.warn(
            f"`optim.adapt {config.optim.adapt}` leaves the encoder as it is, which from scratch "
            "is a random one: start from a run with `--init RUN`, or take `--optim.adapt full`"
        )


def parameter_counts(task: Task) -> dict[str, int]:
    """Numbers of a task: `parameters`, `trained_parameters`, `trained_encoder_parameters`.

    The running mean and whatever else a checkpoint keeps do not count.
    """
    learning = {name: p.numel() for name, p in trainable(task).items()}
    in_encoder = sum(count for name, count in learning.items() if name.startswith("encoder."))
    return {
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
        "trained_parameters": sum(learning.values()),
        "trained_encoder_parameters": in_encoder,
    }


def counts_told(counts: Mapping[str, int], config: FinetuneConfig) -> str:
    """`parameter_counts` as a sentence."""
    whole, learning = counts["parameters"], counts["trained_parameters"]
    text = (
        f"{learning:,} of {whole:,} parameters are trained ({100 * learning / whole:.3g} %), "
        f"{counts['trained_encoder_parameters']:,} of them in the encoder"
    )
    stays = STAYS.get(config.optim.adapt)
    return text if stays is None else f"{text}: {stays}"
