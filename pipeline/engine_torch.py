"""The engine in one plain PyTorch process: what DeepSpeed's results are compared with."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine import (
    Engine,
    EngineConfig,
    OptimizerConfig,
    ParamGroup,
    autocasts,
    begin_moments,
    hold_limits,
    make_adamw,
    set_lr,
)
from pipeline.fragments import MOMENTS, WEIGHT, Held
from pipeline.process import Process


class TorchEngine(Engine):
    """AdamW in one process."""

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
        begin_moments(self._optimizer, self._params)

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

    def _held(self, *, saving: bool) -> Iterator[Held]:
        for name, param in self.module.named_parameters():
            moments = self._optimizer.state.get(param, {})
            yield self._whole(name, {WEIGHT: param, **{kind: moments[kind] for kind in MOMENTS if moments}}, saving)
        for name, buffer in self._buffers():
            yield self._whole(name, {WEIGHT: buffer}, saving)

    def _moments(self) -> list[dict[str, Any]]:
        return [self._optimizer.state[param] for param in self._params]

    def _spread(self) -> None:
        """Nothing to do: the parts are the weights."""

    def weights(self) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        return {name: t.detach().to("cpu", copy=True) for name, t in self.module.state_dict().items()}

    def close(self) -> None:
        """See `Engine.close`."""
        self._optimizer.zero_grad(set_to_none=True)


def clip(params: list[nn.Parameter], limit: float) -> Tensor:
    """Scales the gradients down to the limit (0: not at all) and returns the norm that they had."""
    return nn.utils.clip_grad_norm_(params, limit if limit > 0 else float("inf"))
