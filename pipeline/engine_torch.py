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
    begin_moments,
    hold_limits,
    make_adamw,
    set_lr,
    zero_missing,
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
        self._groups = groups
        self._optimizer = make_adamw(optimizer, groups, process.torch_device)
        self._params = [param for group in groups for param in group.params]
        begin_moments(self._optimizer, self._params)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `Engine.__call__`."""
        return self.module(*args, **kwargs)

    def _backward(self, loss: Tensor) -> None:
        (loss * self._loss_scale.scale / self.config.accumulation).backward()

    def _accumulated(self) -> None:
        """Nothing to do: the gradients stay in the parameters."""

    def _update(self, lr: float) -> float:
        zero_missing(self._params)
        norm = clip(self._params, self.config.grad_clip, self._loss_scale.scale)
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


def clip(params: list[nn.Parameter], limit: float, loss_scale: float = 1.0) -> Tensor:
    """Undoes the loss's scale, scales the gradients down to the limit (0: not at all), returns the norm between."""
    if loss_scale != 1:
        torch._foreach_mul_([param.grad for param in params if param.grad is not None], 1 / loss_scale)
    return nn.utils.clip_grad_norm_(params, limit if limit > 0 else float("inf"))
