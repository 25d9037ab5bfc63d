"""How updates are computed: engine, ZeRO stage, precision, and the optimizer's numbers."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from data_prep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How updates are computed.

    Attributes:
        name: `deepspeed`, or `torch` for one plain process.
        zero_stage: What DeepSpeed splits over the ranks: 0 nothing, 1 optimizer state, 2 also gradients,
            3 also weights.
        precision: `auto` is bf16 where the device multiplies it natively, else fp32. `bf16` runs the forward pass
            under autocast; weights, gradients and optimizer state stay float32, so that a slowly moving momentum copy
            of the weights does not lose its small updates.
        grad_clip: Largest norm of the whole gradient; 0 leaves it unclipped.
        accumulation: Calls of `Engine.step` that make one update.
        recompute: Whether blocks keep only their inputs for the backward and are computed again there (activation
            checkpointing).
        compile: Whether torch.compile makes the vision towers; worth it on a GPU.
    """

    name: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    grad_clip: float = 1.0
    accumulation: int = 1
    recompute: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuses values that no engine could use."""
        if self.name not in ("deepspeed", "torch"):
            raise UserError(f"engine.name={self.name!r} is not known; give deepspeed or torch")
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"engine.zero_stage={self.zero_stage} is not a ZeRO stage; give 0, 1, 2 or 3")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"engine.precision={self.precision!r} is not known; give auto, fp32 or bf16")
        if not 0 <= self.grad_clip < math.inf:
            raise UserError(f"engine.grad_clip={self.grad_clip} must be a norm >= 0; 0 turns clipping off")
        if self.accumulation < 1:
            raise UserError(f"engine.accumulation={self.accumulation} must be at least 1 (1 = no accumulation)")


def autocasts(config: EngineConfig, device: torch.device) -> bool:
    """Whether forward passes run in bf16 on this device."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without these instructions a CPU emulates bf16 products, slower than float32.
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. The learning rate is the peak; `Engine.step` is told which share of it holds now."""

    lr: float = 1e-4
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuses values that AdamW cannot use."""
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr={self.lr} must be above 0; 1e-4 is a usual value")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"optimizer.weight_decay={self.weight_decay} must be at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas} must be two numbers in [0, 1), as [0.9, 0.999]")
        if not 0 < self.eps < 1:
            raise UserError(f"optimizer.eps={self.eps} must be between 0 and 1; 1e-8 is a usual value")
