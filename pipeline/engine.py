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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.engine_config import EngineConfig, OptimizerConfig, autocast_dtype
from pipeline.fragments import MOMENTS, WEIGHT, FragmentFiles, Held, share, to_fragments
from pipeline.loss_scale import LossScale
from pipeline.part_norms import PartNorms
from pipeline.process import Process

__all__ = ["Engine", "EngineConfig", "OptimizerConfig", "ParamGroup", "StepReport", "build_engine"]

_MIN_DEEPSPEED = (0, 19, 8)
"""The first version known to skip a step with a non-finite gradient in float32, under every ZeRO stage."""


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is NaN or infinite; raised on every rank, before any weight has changed."""


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
        updated: Whether the weights changed; false while gradients are accumulated, and where fp16 overflowed.
        part_square: Squared L2 norm of the gradient of one part on one rank, in the mean over all of them; None where
            nobody asked for it (`Engine.watch_parts`) or `updated` is false.
    """

    loss: float
    grad_norm: float
    lr: float
    updated: bool
    part_square: float | None = None


@dataclass(frozen=True)
class EngineState:
    """What is to be saved of an engine.

    Attributes:
        fragments: This rank's part of weights and moments, by key.
        values: JSON-able, alike on all ranks.
    """

    fragments: Mapping[str, Tensor]
    values: Mapping[str, Any]


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

    _params: list[nn.Parameter]
    """All that it steps."""

    def __init__(self, config: EngineConfig, optimizer: OptimizerConfig, module: nn.Module, process: Process) -> None:
        self.module = module
        self.config = config
        self.process = process
        self._base_lr = optimizer.lr
        self._pending = 0
        self._bad: str | None = None
        self._part_norms: PartNorms | None = None
        dtype = autocast_dtype(config, process.torch_device)
        self._loss_scale = LossScale(dynamic=dtype is torch.float16)
        if dtype is not None:
            # Around the module's own forward: DeepSpeed turns off an autocast that it did not begin, and with its own
            # each rank scales the loss of 16-bit floats by itself, and clips before it unscales.
            module.forward = torch.autocast(process.torch_device.type, dtype)(module.forward)

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward pass; what is differentiated by `step` must come from here."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None:
        """Adds `loss * loss_scale / accumulation` to the gradient."""

    @abstractmethod
    def _accumulated(self) -> None:
        """Is told that a backward pass was not the last one of its update."""

    @abstractmethod
    def _update(self, lr: float) -> float:
        """Undoes the loss's scale, clips, steps, clears the gradient.

        Returns:
            The gradient's norm; non-finite where it left the weights alone.
        """

    @abstractmethod
    def _held(self, *, saving: bool) -> Iterator[Held]:
        """The elements of all state that this rank holds; while `saving`, of what all hold its share only."""

    @abstractmethod
    def _moments(self) -> list[dict[str, Any]]:
        """The optimizer's state of each tensor that it steps here."""

    @abstractmethod
    def _spread(self) -> None:
        """Makes the module's weights those that were just written into the parts of `_held`."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """A copy of the module's whole `state_dict` on the CPU; every rank calls this, and gets all of it."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of memory and hooks; the module stays."""

    def layout(self) -> dict[str, str | int]:
        """Over what the state is spread here; it loads under any other."""
        layout: dict[str, str | int] = {"engine": self.config.name, "workers": self.process.world_size}
        if self.config.name == "deepspeed":
            layout["zero_stage"] = self.config.zero_stage
        return layout

    def watch_parts(self) -> None:
        """Lets the report of the update that now begins say how large the gradients of its parts were."""
        self._part_norms = PartNorms(self._params)

    def step(self, loss: Tensor, lr_scale: float) -> StepReport:
        """Backward, and at every `accumulation`-th call: clip and update.

        Args:
            loss: This rank's loss, a scalar; the gradient is that of its average over ranks.
            lr_scale: Share of the peak learning rate that holds now.

        Raises:
            NonFiniteError: On every rank at the end of an update, where the loss of any of them or the gradient was NaN
                or infinite. No weight has changed and the gradient is cleared: the next update may follow.
        """
        mean = self._mean(loss)
        # A bad loss on one rank makes the gradient NaN on every rank: then all of them leave the weights alone.
        self._backward(loss * (1 + 0 * mean))
        mean_loss = mean.item()
        if not math.isfinite(mean_loss):
            self._bad = f"the loss is {mean_loss} on at least one rank (here: {loss.item()})"
        lr = self._base_lr * lr_scale
        self._pending += 1
        if self._pending < self.config.accumulation:
            self._accumulated()
            return StepReport(loss=mean_loss, grad_norm=0.0, lr=lr, updated=False)
        return self._end_update(mean_loss, lr)

    def _end_update(self, mean_loss: float, lr: float) -> StepReport:
        self._pending = 0
        bad, self._bad = self._bad, None
        part_square = self._part_square()
        norm = self._update(lr)
        finite = math.isfinite(norm)
        if bad is not None:
            raise NonFiniteError(bad)
        if self._loss_scale.update(overflow=not finite):
            return StepReport(loss=mean_loss, grad_norm=0.0, lr=lr, updated=False)
        if not finite:
            raise NonFiniteError(f"the norm of the gradient is {norm}, with a loss of {mean_loss:.6g}")
        return StepReport(loss=mean_loss, grad_norm=norm, lr=lr, updated=True, part_square=part_square)

    def _part_square(self) -> float | None:
        if self._part_norms is None:
            return None
        watched, self._part_norms = self._part_norms, None
        # Each part's loss was divided by their number, and scaled.
        factor = self.config.accumulation / self._loss_scale.scale
        total = torch.tensor(watched.take() * factor**2, dtype=torch.float64)
        return self._mean(total.to(self.process.device)).item() / self.config.accumulation

    def state(self) -> EngineState:
        """Weights and optimizer state as they are now; this rank's part of them, not copied."""
        if self._pending:
            raise RuntimeError(f"save between updates, not after {self._pending} accumulated backward passes")
        # All tensors are stepped in each update, whether or not the loss reached them.
        values = {"shapes": self._shapes(), "steps": int(self._moments()[0]["step"])}
        return EngineState(to_fragments(self._held(saving=True)), values | {"loss_scale": self._loss_scale.state()})

    def load(self, files: FragmentFiles, values: Mapping[str, Any]) -> None:
        """Takes what `state` gave on any number of ranks, under any engine and ZeRO stage.

        Raises:
            UserError: It is another model's.
        """
        difference = _first_difference(values["shapes"], self._shapes())
        if difference is not None:
            raise UserError(f"it holds another model than this run's ({difference})")
        with torch.no_grad():
            for part in self._held(saving=False):
                files.read_into(part)
            for state in self._moments():
                state["step"].fill_(values["steps"])
            self._spread()
        self._loss_scale.load(values["loss_scale"])
        self._pending, self._bad = 0, None

    def _shapes(self) -> dict[str, list[int]]:
        # Of a parameter that ZeRO 3 has split, the shape is kept beside it; scalars may have been given a length.
        shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in self.module.named_parameters()}
        shapes |= {name: buffer.shape for name, buffer in self._buffers()}
        return {name: list(shape) or [1] for name, shape in shapes.items()}

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers that belong to the state."""
        kept = self.module.state_dict(keep_vars=True)
        return ((name, buffer) for name, buffer in self.module.named_buffers() if name in kept)

    def _whole(self, name: str, tensors: Mapping[str, Tensor], saving: bool) -> Held:
        """A part that all ranks hold whole."""
        length = tensors[WEIGHT].numel()
        own = share(length, self.process.rank, self.process.world_size) if saving else slice(0, length)
        return Held(name, own.start, {kind: tensor.detach().view(-1)[own] for kind, tensor in tensors.items()})

    def _mean(self, loss: Tensor) -> Tensor:
        """The loss averaged over ranks."""
        value = loss.detach().float().clone()
        if self.process.world_size > 1:
            dist.all_reduce(value)
        return value / self.process.world_size


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
    """The AdamW of both engines: fused where PyTorch has a fused kernel for the device that it steps on."""
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


def begin_moments(optimizer: torch.optim.AdamW, tensors: Iterable[Tensor]) -> None:
    """Gives the tensors that AdamW steps the state that it would give them in its first step."""
    for tensor in tensors:
        on_device = optimizer.defaults["fused"] or optimizer.defaults["capturable"]
        step = torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu")
        moments = {kind: torch.zeros_like(tensor, memory_format=torch.preserve_format) for kind in MOMENTS}
        optimizer.state[tensor] = {"step": step, **moments}


def set_lr(optimizer: torch.optim.Optimizer, groups: list[ParamGroup], lr: float) -> None:
    """Gives each of the optimizer's groups its share of the learning rate."""
    for target, group in zip(optimizer.param_groups, groups, strict=True):
        target["lr"] = lr * group.lr_scale


def zero_missing(params: Iterable[nn.Parameter]) -> None:
    """Gives a parameter that the loss did not reach a gradient of zero: it still decays and counts the step."""
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)


@torch.no_grad()
def hold_limits(groups: list[ParamGroup]) -> list[nn.Parameter]:
    """Brings parameters back between the limits of their group; returns those that have any."""
    limited = [(param, group.limits) for group in groups if group.limits is not None for param in group.params]
    for param, limits in limited:
        param.clamp_(*limits)
    return [param for param, _ in limited]


def _first_difference(saved: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> str | None:
    for name, shape in wanted.items():
        if name not in saved:
            return f"it has no {name}"
        if saved[name] != shape:
            return f"size mismatch for {name}: {saved[name]}, here {shape}"
    return next((f"{name} is not in this one" for name in saved if name not in wanted), None)


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
