"""The engine turns a loss into an update: backward, average over ranks, clip, optimizer step.

Two parts do it behind one interface: DeepSpeed (any number of processes, ZeRO 0-3) and plain PyTorch (one
process: a laptop, a debugger). The loop gives each rank's own loss; their average over ranks is minimised.

    engine = build_engine(EngineConfig(), OptimizerConfig(), module, split_decay(module), process)
    report = engine.step(engine(batch), lr_scale=0.5)
"""

import importlib.metadata
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.process import Process

_MIN_DEEPSPEED = (0, 19, 8)
"""The first version known to skip a step with a non-finite gradient in float32, under every ZeRO stage."""


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is NaN or infinite; raised on every rank, before any weight has changed."""


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


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that are updated alike: decayed or not, at `lr_scale` times the optimizer's rate.

    Where there are `limits`, each update ends by bringing the values back between them.
    """

    params: tuple[nn.Parameter, ...]
    decay: bool
    lr_scale: float = 1.0
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one call of `Engine.step` did.

    Attributes:
        loss: The loss averaged over ranks.
        grad_norm: L2 norm of the averaged gradient before clipping; 0 where `updated` is false.
        lr: Learning rate of a group with `lr_scale=1`.
        updated: Whether the weights changed; false while gradients are accumulated.
    """

    loss: float
    grad_norm: float
    lr: float
    updated: bool


def split_decay(module: nn.Module, lr_scale: float = 1.0) -> list[ParamGroup]:
    """Groups a module's trainable parameters: matrices decay; biases, norms and other vectors do not.

    Args:
        module: Frozen parameters in it are left out; tied ones count once.
        lr_scale: Learning rate of both groups, in units of the optimizer's.
    """
    trainable = [param for param in module.parameters() if param.requires_grad]
    groups = [
        ParamGroup(params=tuple(p for p in trainable if p.ndim > 1), decay=True, lr_scale=lr_scale),
        ParamGroup(params=tuple(p for p in trainable if p.ndim <= 1), decay=False, lr_scale=lr_scale),
    ]
    return [group for group in groups if group.params]


class Engine(ABC):
    """One module being trained. Every rank calls the same methods in the same order.

    Attributes:
        module: The plain module.
        config: How updates are computed.
        process: Which rank this is.
    """

    def __init__(self, config: EngineConfig, optimizer: OptimizerConfig, module: nn.Module, process: Process) -> None:
        self.module = module
        self.config = config
        self.process = process
        self._base_lr = optimizer.lr
        self._pending = 0

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward pass; what is differentiated by `step` must come from here."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None:
        """Adds `loss / accumulation` to the gradient."""

    @abstractmethod
    def _accumulated(self) -> None:
        """Is told that a backward pass was not the last one of its update."""

    @abstractmethod
    def _update(self, lr: float) -> float:
        """Clips, steps, clears the gradient; returns its norm, non-finite where it left the weights alone."""

    @abstractmethod
    def _save(self, folder: Path) -> None:
        """Writes this rank's files."""

    @abstractmethod
    def _load(self, folder: Path) -> None:
        """Reads this rank's files."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """A copy of the module's whole `state_dict` on the CPU; every rank calls this, and gets all of it."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of memory and hooks; the module stays."""

    def layout(self) -> dict[str, str | int]:
        """What a checkpoint's engine files depend on: they load only where this is the same."""
        layout: dict[str, str | int] = {"engine": self.config.name, "workers": self.process.world_size}
        if self.config.name == "deepspeed":
            layout["zero_stage"] = self.config.zero_stage
        return layout

    def step(self, loss: Tensor, lr_scale: float) -> StepReport:
        """Backward, and at every `accumulation`-th call: clip and update.

        Args:
            loss: This rank's loss, a scalar; the gradient is that of its average over ranks.
            lr_scale: Share of the peak learning rate that holds now.

        Raises:
            NonFiniteError: On every rank, where the loss of any of them or the gradient is NaN or infinite.
                No weight has changed; the gradient is lost, so load a checkpoint before going on.
        """
        mean = self._start_mean(loss)
        self._backward(loss)
        mean_loss = self._finish_mean(mean)
        if not math.isfinite(mean_loss):
            raise NonFiniteError(f"the loss is {mean_loss} on at least one rank (here: {loss.item()})")
        lr = self._base_lr * lr_scale
        self._pending += 1
        if self._pending < self.config.accumulation:
            self._accumulated()
            return StepReport(loss=mean_loss, grad_norm=0.0, lr=lr, updated=False)
        self._pending = 0
        norm = self._update(lr)
        if not math.isfinite(norm):
            raise NonFiniteError(f"the norm of the gradient is {norm}, with a loss of {mean_loss:.6g}")
        return StepReport(loss=mean_loss, grad_norm=norm, lr=lr, updated=True)

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer state, each rank its own files; every rank must call it."""
        if self._pending:
            raise RuntimeError(f"save between updates, not after {self._pending} accumulated backward passes")
        folder.mkdir(parents=True, exist_ok=True)
        self._save(folder)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote under the same `layout`; trusted files only: DeepSpeed unpickles."""
        self._load(folder)
        self._pending = 0

    def _start_mean(self, loss: Tensor) -> tuple[Tensor, dist.Work | None]:
        # Not awaited before the backward pass, which thereby hides it.
        value = loss.detach().float().clone()
        if self.process.world_size == 1:
            return value, None
        return value, dist.all_reduce(value, async_op=True)

    def _finish_mean(self, mean: tuple[Tensor, dist.Work | None]) -> float:
        value, work = mean
        if work is not None:
            work.wait()
        return value.item() / self.process.world_size


def build_engine(
    config: EngineConfig,
    optimizer: OptimizerConfig,
    module: nn.Module,
    param_groups: Iterable[ParamGroup],
    process: Process,
) -> Engine:
    """Makes the engine that the configuration names; the module must be on the process's device already.

    Raises:
        UserError: `torch` with several processes, or DeepSpeed is missing.
    """
    groups = list(param_groups)
    _check_groups(module, groups)
    if config.name == "torch":
        if process.world_size != 1:
            raise UserError(
                f"engine.name=torch runs one process, not {process.world_size}; "
                "use --engine.name deepspeed, or --cluster.workers 1"
            )
        from pipeline.engine_torch import TorchEngine

        return TorchEngine(config, optimizer, module, groups, process)
    preflight_deepspeed()
    from pipeline.engine_deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(config, optimizer, module, groups, process)


def _check_groups(module: nn.Module, groups: list[ParamGroup]) -> None:
    known = {id(param) for param in module.parameters()}
    given = [id(param) for group in groups for param in group.params]
    if not given:
        raise ValueError("there is nothing to train: no group holds a parameter")
    if len(set(given)) != len(given) or not known.issuperset(given):
        raise ValueError("every trained parameter must belong to the module, and to one group only")


def make_adamw(config: OptimizerConfig, groups: list[ParamGroup], device: torch.device) -> torch.optim.AdamW:
    """The AdamW of both engines: fused where PyTorch has a fused kernel for the device."""
    described = [
        {
            "params": list(group.params),
            "lr": config.lr * group.lr_scale,
            "weight_decay": config.weight_decay if group.decay else 0.0,
        }
        for group in groups
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, groups: list[ParamGroup], lr: float) -> None:
    """Gives each of the optimizer's groups its share of the learning rate."""
    for target, group in zip(optimizer.param_groups, groups, strict=True):
        target["lr"] = lr * group.lr_scale


@torch.no_grad()
def hold_limits(groups: list[ParamGroup]) -> list[nn.Parameter]:
    """Brings parameters back between the limits of their group; returns those that have any."""
    limited = [(param, group.limits) for group in groups if group.limits is not None for param in group.params]
    for param, limits in limited:
        param.clamp_(*limits)
    return [param for param, _ in limited]


def preflight_deepspeed() -> None:
    """Checks, in milliseconds and without importing it, that DeepSpeed can be used here.

    No compiler is looked for, as none is needed: see `pipeline/engine_deepspeed.py`.

    Raises:
        UserError: DeepSpeed is missing or too old.
    """
    wanted = ".".join(map(str, _MIN_DEEPSPEED))
    mend = f"install it with `pip install 'deepspeed>={wanted}'`, or go on without it: --engine.name torch"
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"engine.name=deepspeed needs the package deepspeed, which is not installed; {mend}")
    version = importlib.metadata.version("deepspeed")
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
    if numbers < _MIN_DEEPSPEED:
        raise UserError(f"deepspeed {version} is installed, but version {wanted} or later is needed; {mend}")
