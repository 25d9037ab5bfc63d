"""How updates are computed: engine, ZeRO stage, precision, and the optimizer's numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from data_prep.errors import UserError
from pipeline.deepspeed_json import check_stage, read_deepspeed_json

LAYOUT_KEYS = frozenset(
    {"name", "zero_stage", "offload_optimizer", "offload_params", "recompute", "compile", "deepspeed_json"}
)
"""What decides where an update is computed, and not which: a stage goes on from its checkpoints where they change."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How updates are computed.

    Attributes:
        name: `deepspeed`, or `torch` for one plain process.
        zero_stage: What DeepSpeed splits over the ranks: 0 nothing, 1 optimizer state, 2 also gradients,
            3 also weights. On one rank 1 and 2 are carried out as 0 (`on`).
        precision: `auto` is bf16 where the device multiplies it natively, else fp32. `bf16` and `fp16` run the forward
            pass under autocast; weights, gradients and optimizer state stay float32, so that a slowly moving momentum
            copy of the weights does not lose its small updates. `fp16` scales the loss, by as much as goes.
        grad_clip: Largest norm of the whole gradient; 0 leaves it unclipped.
        micro_batch: Most samples of one forward pass of a process; each process makes as few equal parts of its samples
            of an update as that takes. None makes `accumulation` parts.
        accumulation: Parts that each process makes of its samples of an update, where `micro_batch` is not given.
        offload_optimizer: Whether AdamW and its state live on the CPU (ZeRO 1-3).
        offload_params: Whether weights live in host memory between their uses (ZeRO 3).
        recompute: Whether blocks keep only their inputs for the backward and are computed again there (activation
            checkpointing).
        compile: Whether torch.compile makes the transformer blocks of both models; worth it on a GPU.
        deepspeed_json: A file of DeepSpeed's own settings, or these themselves, which are laid over what is written
            from the keys above; what has a key above is refused.
    """

    name: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    grad_clip: float = 1.0
    micro_batch: int | None = None
    accumulation: int = 1
    offload_optimizer: bool = False
    offload_params: bool = False
    recompute: bool = False
    compile: bool = False
    deepspeed_json: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuses values that no engine could use, and such as do not go together."""
        if self.name not in ("deepspeed", "torch"):
            raise UserError(f"engine.name={self.name!r} is not known; give deepspeed or torch")
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"engine.zero_stage={self.zero_stage} is not a ZeRO stage; give 0, 1, 2 or 3")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise UserError(f"engine.precision={self.precision!r} is not known; give auto, fp32, bf16 or fp16")
        if not 0 <= self.grad_clip < math.inf:
            raise UserError(f"engine.grad_clip={self.grad_clip} must be a norm >= 0; 0 turns clipping off")
        self._check_parts()
        self._check_deepspeed()
        if isinstance(self.deepspeed_json, str):
            # Once, where the run starts: a worker on another machine has no such file.
            object.__setattr__(self, "deepspeed_json", read_deepspeed_json(self.deepspeed_json))
        if self.deepspeed_json is not None:
            assert not isinstance(self.deepspeed_json, str)
            check_stage(read_deepspeed_json(self.deepspeed_json), self.zero_stage)

    def _check_parts(self) -> None:
        if self.accumulation < 1:
            raise UserError(f"engine.accumulation={self.accumulation} must be at least 1 (1 = no accumulation)")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"engine.micro_batch={self.micro_batch} must be at least 1 sample")
        if self.micro_batch is not None and self.accumulation != 1:
            raise UserError(
                f"engine.micro_batch={self.micro_batch} decides how many parts an update has, and so does "
                f"engine.accumulation={self.accumulation}; give one of them"
            )

    def _check_deepspeed(self) -> None:
        stage = f"engine.zero_stage={self.zero_stage}"
        if self.name == "torch":
            for key in ("offload_optimizer", "offload_params", "deepspeed_json"):
                if getattr(self, key):
                    raise UserError(
                        f"engine.{key} is for DeepSpeed, and engine.name=torch; use --engine.name deepspeed"
                    )
        if self.offload_optimizer and self.zero_stage == 0:
            raise UserError(f"engine.offload_optimizer does not go with {stage}; give 1, 2 or 3")
        if self.offload_params and self.zero_stage != 3:
            raise UserError(f"engine.offload_params does not go with {stage}, which keeps all weights; give 3")
        if self.compile and self.name == "deepspeed" and self.zero_stage == 3:
            raise UserError(f"engine.compile does not go with {stage}, which gathers weights layer by layer; give 2")

    def on(self, processes: int) -> "EngineConfig":
        """As so many processes carry it out: on one, ZeRO 1 and 2 have nothing to split, and stage 0 does the same.

        They would copy all gradients twice and keep a second copy of the weights. Settings of DeepSpeed's own, and an
        optimizer on the CPU, are carried out as they are given.
        """
        splits_nothing = self.name == "deepspeed" and processes == 1 and self.zero_stage in (1, 2)
        if not splits_nothing or self.offload_optimizer or self.deepspeed_json:
            return self
        return replace(self, zero_stage=0)

    def resolved(self, stage: str, batch: int, processes: int, least: int = 1) -> "EngineConfig":
        """With `accumulation` in place of `micro_batch`.

        Args:
            stage: Section of the configuration that the batch belongs to, for the message.
            batch: Samples of an update over all processes.
            processes: How many train together.
            least: Samples that each part must have.

        Raises:
            UserError: No equal parts are that small.
        """
        if self.micro_batch is None:
            return self
        if self.micro_batch < least:
            raise UserError(
                f"engine.micro_batch={self.micro_batch} must be at least {least}: a part of {stage} needs as many "
                f"samples to tell apart; try --engine.micro_batch {least}"
            )
        parts = parts_of(batch, processes, self.micro_batch)
        if parts is None or batch // processes // parts < least:
            whole = max(least, batch // processes)
            raise UserError(
                f"engine.micro_batch={self.micro_batch}: the {batch / processes:g} samples of each of {processes} "
                f"workers ({stage}.loop.global_batch={batch}) do not divide into equal parts of {least} to "
                f"{self.micro_batch} samples; give another global batch, or --engine.micro_batch {whole}"
            )
        return replace(self, micro_batch=None, accumulation=parts)


def parts_of(batch: int, processes: int, micro_batch: int) -> int | None:
    """The fewest equal parts of a process's samples of at most `micro_batch`; None where it has no whole number."""
    own, rest = divmod(batch, processes)
    if rest:
        return None
    return next((parts for parts in range(-(-own // micro_batch), own + 1) if parts and own % parts == 0), None)


def autocast_dtype(config: EngineConfig, device: torch.device) -> torch.dtype | None:
    """The 16-bit type of forward passes on this device; None for float32."""
    if config.precision == "auto":
        return torch.bfloat16 if _multiplies_bf16(device) else None
    known: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    return known[config.precision]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without these instructions a CPU emulates bf16 products, slower than float32.
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


@dataclass(frozen=True, kw_only=True)
class LrScalingConfig:
    """How the learning rate follows the global batch.

    Attributes:
        rule: ``none``; ``sqrt``, by the square root of the batch over `base_batch`: Adam's, whose updates do not grow
            with the gradient (Malladi et al. 2022, arXiv 2205.10287); ``linear``, in proportion: SGD's (Goyal et al.
            2017, arXiv 1706.02677).
        base_batch: Global batch that `OptimizerConfig.lr` was found for.
    """

    rule: Literal["none", "linear", "sqrt"] = "none"
    base_batch: int | None = None

    def __post_init__(self) -> None:
        """Refuses a rule without a base, and a base that nothing follows."""
        if self.rule not in ("none", "linear", "sqrt"):
            raise UserError(f"optimizer.lr_scaling.rule={self.rule!r} is not known; give none, linear or sqrt")
        if self.rule == "none" and self.base_batch is not None:
            raise UserError(
                f"optimizer.lr_scaling.base_batch={self.base_batch} is not followed by rule=none; leave it out, or "
                "give rule sqrt or linear"
            )
        if self.rule != "none" and (self.base_batch is None or self.base_batch < 1):
            raise UserError(
                f"optimizer.lr_scaling.rule={self.rule} needs base_batch, the global batch that optimizer.lr was found "
                f"for, at least 1 (given: {self.base_batch})"
            )

    def factor(self, batch: int) -> float:
        """What the learning rate is multiplied by for a global batch."""
        if self.base_batch is None:
            return 1.0
        ratio = batch / self.base_batch
        return ratio if self.rule == "linear" else math.sqrt(ratio)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. The learning rate is the peak; `Engine.step` is told which share of it holds now.

    With `lr_scaling` it is that for another batch, and `scaled` gives the one that holds.

    Attributes:
        lr: Peak of the learning rate.
        weight_decay: Of matrices; biases, norms and other vectors have none.
        betas: How slowly the means of the gradient and of its square follow.
        eps: Added to the root of the latter.
        lr_scaling: How `lr` follows the global batch.
    """

    lr: float = 1e-4
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr_scaling: LrScalingConfig = field(default_factory=LrScalingConfig)

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

    def scaled(self, batch: int) -> "OptimizerConfig":
        """That of a training with this global batch; nothing is left to scale."""
        return replace(self, lr=self.lr * self.lr_scaling.factor(batch), lr_scaling=LrScalingConfig())

    def describe_lr(self, batch: int) -> str:
        """What a rule makes of the learning rate; empty where there is none."""
        scaling = self.lr_scaling
        if scaling.rule == "none":
            return ""
        ratio = f"{batch}/{scaling.base_batch}"
        factor = f"sqrt({ratio})" if scaling.rule == "sqrt" else ratio
        return f"learning rate {self.lr:g} x {factor} = {self.scaled(batch).lr:.4g}"
