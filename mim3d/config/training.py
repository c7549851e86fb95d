"""Optimiser and loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AdaptedMap = Literal["qkv", "proj", "mlp"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    weight_decay: float = 0.05
    """Decoupled weight decay; biases, norms, positions and tokens have none."""
    layer_decay: float = 1.0
    """Factor of the rate from each block to the one below it; 1 is none."""
    encoder_lr: float = 1.0
    """Factor of the whole encoder's rate."""
    freeze_encoder_steps: int = 0
    """Steps at the start in which the encoder does not learn."""
    adapt: Literal["full", "frozen", "lora"] = "full"
    """Fine-tuning: what of the encoder learns. All of it; nothing, so that its features stay as the
    initial run has them; or low-rank adapters in its blocks beside maps that stay
    (arXiv:2106.09685), which are added to these in what the run writes."""
    lora_rank: int = 8
    """`adapt: lora`: rank of the update of a map; queries, keys and values have one each."""
    lora_scale: float = 1.0
    """`adapt: lora`: factor of the update, the paper's alpha / r."""
    lora_on: tuple[AdaptedMap, ...] = ("qkv", "proj", "mlp")
    """`adapt: lora`: maps of a block that have adapters: to queries, keys and values; back from the
    heads; and both of the MLP."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up."""
    final_lr: float = 0.0
    """Last rate of the cosine as a share of the peak."""
    clip: float | None = 1.0
    """Largest norm of the gradient; none does not clip."""
    ema: float = 0.0
    """Decay of the running mean of the weights, which is what is used afterwards; 0 is off."""


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    steps: int = 10_000
    """Optimiser updates."""
    batch_size: int = 8
    """Crops of one update, over all devices and accumulation steps."""
    accumulation: int = 1
    """Parts in which a device works through its share of the batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast where the device does bf16 in hardware, else fp32."""
    float32_matmul: Literal["highest", "high", "medium"] = "highest"
    """How exact fp32 matrix products are: torch's `set_float32_matmul_precision`. Below `highest`
    a GPU rounds to TF32; `medium` takes a CPU's other library, 1.2 to 2 times as fast at an error
    of 4e-7 where it was measured, but rounds to bf16 on CPUs with AMX."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share a run: `ddp` keeps all weights in each, `fsdp` (FSDP2) a part in
    each, for models that do not fit; `auto` is `ddp`. A run may go on with another one."""
    threads: int | None = None
    """Threads of a CPU process; none leaves torch's choice."""
    compile: bool = False
    """Compile the model with `torch.compile`: worth it for long runs."""
    seed: int = 0
    """Names the run: crops, masks, augmentation and initialisation follow from it."""
    validate_every: int = 0
    """Steps between validations; 0 is only at the end."""
    validate_at: tuple[int, ...] = ()
    """Further steps at which to validate, for example in a logarithmic grid; 0 is before the first
    update."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    pictures_every: int = 1000
    """Steps between reconstruction panels; 0 is none."""
    collective_timeout_seconds: float = 120.0
    """How long one of several processes waits for the others once the first steps are made; longer
    where they are of unequal speed. While the first one validates or writes they wait patiently."""
    stop_on_nonfinite: int = 10
    """Consecutive steps with a non-finite loss or gradient after which the run stops."""
