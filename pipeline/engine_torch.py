"""The engine in one plain PyTorch process: what DeepSpeed's results are compared with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine import (
    Engine,
    EngineConfig,
    OptimizerConfig,
    ParamGroup,
    autocasts,
    hold_limits,
    make_adamw,
    set_lr,
)
from pipeline.process import Process
from pipeline.tensor_files import read_tensors, write_tensors

_MODULE = "module.safetensors"
_OPTIMIZER = "optimizer.safetensors"


class TorchEngine(Engine):
    """AdamW in one process. Its files are safetensors: the weights, and the moments by parameter name."""

    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        module: nn.Module,
        groups: list[ParamGroup],
        process: Process,
    ) -> None:
        super().__init__(config, optimizer, module, process)
        self._device = process.torch_device
        self._groups = groups
        self._autocasts = autocasts(config, self._device)
        self._optimizer = make_adamw(optimizer, groups, self._device)
        self._params = [param for group in groups for param in group.params]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `Engine.__call__`."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocasts):
            return self.module(*args, **kwargs)

    def _backward(self, loss: Tensor) -> None:
        (loss / self.config.accumulation).backward()

    def _accumulated(self) -> None:
        """Nothing to do: the gradients stay in the parameters."""

    def _update(self, lr: float) -> float:
        for param in self._params:
            if param.grad is None:
                # As DeepSpeed does: a parameter that the loss did not reach still decays and counts the step.
                param.grad = torch.zeros_like(param)
        norm = clip(self._params, self.config.grad_clip)
        if torch.isfinite(norm):
            set_lr(self._optimizer, self._groups, lr)
            self._optimizer.step()
            hold_limits(self._groups)
        self._optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def _save(self, folder: Path) -> None:
        write_tensors(folder / _MODULE, self.module.state_dict())
        write_tensors(folder / _OPTIMIZER, self._moments())

    def _load(self, folder: Path) -> None:
        self.module.load_state_dict(read_tensors(folder / _MODULE))
        moments = read_tensors(folder / _OPTIMIZER, device=self.process.device)
        names = dict(self.module.named_parameters())
        self._optimizer.state.clear()
        for entry, tensor in moments.items():
            kind, _, name = entry.partition(".")
            self._optimizer.state[names[name]][kind] = tensor.cpu() if self._on_host(kind) else tensor

    def _moments(self) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {param: name for name, param in self.module.named_parameters()}
        return {
            f"{kind}.{names[param]}": tensor
            for param, state in self._optimizer.state.items()
            for kind, tensor in state.items()
        }

    def _on_host(self, kind: str) -> bool:
        # AdamW keeps its count of steps on the CPU unless its fused kernel reads it on the device.
        return kind == "step" and not self._optimizer.defaults["fused"]

    def weights(self) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        return {name: t.detach().to("cpu", copy=True) for name, t in self.module.state_dict().items()}

    def close(self) -> None:
        """See `Engine.close`."""
        self._optimizer.zero_grad(set_to_none=True)


def clip(params: list[nn.Parameter], limit: float) -> Tensor:
    """Scales the gradients down to the limit (0: not at all) and returns the norm that they had."""
    return nn.utils.clip_grad_norm_(params, limit if limit > 0 else float("inf"))
