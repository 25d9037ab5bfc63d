"""The engine on DeepSpeed: one process per worker, ZeRO 0-3, gloo between CPUs and nccl between GPUs.

Facts this file rests on, found in DeepSpeed 0.19.8:
- On the CPU it compiles one C++ op at the first start (15-40 s, wants a compiler and ninja): an all-reduce in
  shared memory, which only inference with tensor parallelism calls, never training. It asks a table,
  `deepspeed.ops.__compatible_ops__`, whether it may: with an empty one nothing is compiled, two workers do not
  race to do so, and no compiler is needed.
- ZeRO 1-3 skip a step whose gradient norm is not finite and say so by `was_step_applied()`; stage 0 does not.
- ZeRO 3, and an optimizer on the CPU, keep the gradients of the step before where a parameter gets none in this one;
  the others use zero.
- Without ZeRO a single rank would still send all gradients to itself; `enable_backward_allreduce` is how its pipeline
  engine turns that off.
- ZeRO 1-3 step a float32 copy of the weights, and write the weights from it: what is changed in a weight alone is
  undone by the next step.
- Its checkpoints fit only as many ranks and the same stage, are pickles, and its converter between them leaves out
  frozen parameters under ZeRO 3. So we read and write the float32 partitions themselves: each rank knows which
  elements of which parameter its partitions hold (`_held`).
"""

import importlib
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from pipeline.deepspeed_json import laid_over
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
from pipeline.engine_torch import clip
from pipeline.fragments import MOMENTS, WEIGHT, Held
from pipeline.loopback import listen_on_loopback
from pipeline.process import Process


class DeepSpeedEngine(Engine):
    """A module driven by `deepspeed.initialize`."""

    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        module: nn.Module,
        groups: list[ParamGroup],
        process: Process,
    ) -> None:
        config = config.on(process.world_size)
        super().__init__(config, optimizer, module, process)
        ensure_process_group(process)
        deepspeed = _import_deepspeed(process)
        self._scalars = _give_scalars_a_length(module)
        self._groups = groups
        self._params = [param for group in groups for param in group.params]
        self._optimizer = make_adamw(optimizer, groups, process.torch_device)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=deepspeed_config(config, process)
        )
        begin_moments(self._optimizer, self._stepped())
        if process.world_size == 1 and config.zero_stage == 0:
            # There is nobody to average with; it would flatten all gradients and copy them back.
            self._engine.enable_backward_allreduce = False
        self._external = 0
        if config.zero_stage == 3:
            own = [param for param in _own_parameters(module) if param.requires_grad]
            for param in own:
                deepspeed.zero.register_external_parameter(module, param)
            self._keep_whole(own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `Engine.__call__`."""
        result = self._engine(*args, **kwargs)
        if self.config.zero_stage == 3:
            self._keep_found()
        return result

    def _keep_found(self) -> None:
        """Deals with parameters that DeepSpeed has just seen used outside their layers."""
        found = [param for part in self.module.modules() for param in _external_of(part)]
        if len(found) == self._external:
            return
        self._keep_whole(param for param in found if param.requires_grad)
        coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
        if self._external and coordinator.is_complete_trace():
            coordinator._invalidate_trace()  # it foresees what each layer fetches, and takes another course for a fault
        self._external = len(found)

    def _keep_whole(self, params: Iterable[Any]) -> None:
        """Lets ZeRO 3 gather parameters once a step, and not anew for each layer.

        It gathers a parameter for a layer whose forward is called with tensors and gives tensors. What is used
        elsewhere would be empty again in the backward.
        """
        fresh = [p for p in params if not p.is_external_param]
        for param in fresh:
            param.is_external_param = True
        empty = [p for p in fresh if p.ds_status.name == "NOT_AVAILABLE"]
        if empty:
            empty[0].all_gather(empty)

    def _backward(self, loss: Tensor) -> None:
        if self._loss_scale.dynamic and self.config.zero_stage:
            # ZeRO scales the loss by it, and unscales the gradient before it clips.
            self._engine.optimizer.override_loss_scale(self._loss_scale.scale)
        elif self._loss_scale.dynamic:
            loss = loss * self._loss_scale.scale
        self._engine.backward(loss)

    def _accumulated(self) -> None:
        self._engine.step()

    def _update(self, lr: float) -> float:
        set_lr(self._optimizer, self._groups, lr)
        norm = self._update_whole() if self.config.zero_stage == 0 else self._update_split()
        if math.isfinite(norm):
            self._hold_limits()
        return norm

    def _update_split(self) -> float:
        self._engine.step()
        if self.config.zero_stage == 3:
            # A parameter that the next loss does not reach would otherwise get this step's gradient again.
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        if self.config.offload_optimizer:
            for tensor in self._stepped():
                assert tensor.grad is not None
                tensor.grad.zero_()  # likewise
        if not self._engine.was_step_applied():
            return float("nan")
        return float(self._engine.get_global_grad_norm())

    def _update_whole(self) -> float:
        # Without ZeRO the averaged gradient lies whole in the parameters, and DeepSpeed would step with any.
        zero_missing(self._params)
        norm = clip(self._params, self.config.grad_clip, self._loss_scale.scale).item()
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
            self._engine.micro_steps += 1  # as its step would have counted, by which it tells the parts of an update
        return norm

    def _hold_limits(self) -> None:
        import deepspeed

        limited = [param for group in self._groups if group.limits is not None for param in group.params]
        if not limited:
            return
        with deepspeed.zero.GatheredParameters(limited, modifier_rank=0, enabled=self.config.zero_stage == 3):
            for param in hold_limits(self._groups):
                # ZeRO steps a copy of its own, from which the parameter is written again after each step.
                deepspeed.utils.safe_set_full_fp32_param(param, param)

    def _held(self, *, saving: bool) -> Iterator[Held]:
        trained = {id(param) for param in self._params}
        for name, param in self.module.named_parameters():
            if self.config.zero_stage == 3:
                yield self._shard(name, param, id(param) in trained)
            elif id(param) in trained and self.config.zero_stage:
                yield from self._partition(name, param)
            else:
                moments = self._optimizer.state.get(param, {})
                kinds = {kind: moments[kind] for kind in MOMENTS if moments}
                yield self._whole(name, {WEIGHT: param, **kinds}, saving)
        for name, buffer in self._buffers():
            yield self._whole(name, {WEIGHT: buffer}, saving)

    def _partition(self, name: str, param: nn.Parameter) -> Iterator[Held]:
        """What ZeRO 1 and 2 give this rank of a parameter to step: a part, all, or nothing of it."""
        mapping = param._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return
        flat = self._engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        where = mapping.hp_fragment_address
        yield Held(name, mapping.lp_fragment_address.start, self._views(flat, where.start, where.numel))

    def _shard(self, name: str, param: Any, trained: bool) -> Held:
        """What ZeRO 3 gives this rank of a parameter: an equal part of each, padded at the end."""
        length = param.ds_tensor.ds_numel
        start = length * self.process.rank
        real = max(0, min(length, param.ds_numel - start))
        if not trained:
            return Held(name, start, {WEIGHT: param.ds_tensor[:real]})
        zero = self._engine.optimizer
        group, offset, _ = zero.grad_position[zero.get_param_id(param)]
        return Held(name, start, self._views(zero.fp32_partitioned_groups_flat[group], offset, real))

    def _views(self, flat: Tensor, start: int, length: int) -> dict[str, Tensor]:
        moments = self._optimizer.state[flat]
        tensors = {WEIGHT: flat.detach(), **{kind: moments[kind] for kind in MOMENTS}}
        return {kind: tensor.narrow(0, start, length) for kind, tensor in tensors.items()}

    def _stepped(self) -> list[Tensor]:
        """The tensors that the optimizer steps here: ZeRO's own float32 copies, or the parameters."""
        if self.config.zero_stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        if self.config.zero_stage:
            return list(self._engine.optimizer.single_partition_of_fp32_groups)
        return list(self._params)

    def _moments(self) -> list[dict[str, Any]]:
        return [self._optimizer.state[tensor] for tensor in self._stepped()]

    def _spread(self) -> None:
        zero = self._engine.optimizer
        if self.config.zero_stage in (1, 2):
            zero.update_lp_params()
        elif self.config.zero_stage == 3:
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            # Small parameters are kept whole between steps: they are let go and gathered anew.
            zero._partition_all_parameters()
            zero.checkpoint_event_epilogue()

    def weights(self) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), enabled=self.config.zero_stage == 3):
            whole = {name: t.detach().to("cpu", copy=True) for name, t in self.module.state_dict().items()}
        return {name: t.reshape(()) if name in self._scalars else t for name, t in whole.items()}

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.destroy()


def _external_of(part: Any) -> Iterator[nn.Parameter]:
    """Parameters of others that a layer was seen to use."""
    return (param for _, param in part.ds_external_parameters())


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that belong to no layer of PyTorch's: class tokens, positions, temperatures."""
    for part in module.modules():
        if not type(part).__module__.startswith("torch."):
            yield from part.parameters(recurse=False)


def _give_scalars_a_length(module: nn.Module) -> set[str]:
    """Makes scalar parameters vectors of length one, for DeepSpeed cannot send scalars; returns their names."""
    scalars = {name: param for name, param in module.named_parameters() if param.dim() == 0}
    for param in scalars.values():
        param.data = param.data.reshape(1)
    return set(scalars)


def deepspeed_config(config: EngineConfig, process: Process) -> dict[str, Any]:
    """DeepSpeed's own configuration, made in the worker because it depends on the number of workers."""
    ours = {
        # DeepSpeed sees losses, not batches: only the number of accumulated backward passes means anything.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.grad_clip if config.zero_stage else 0.0,
        "zero_optimization": _zero_config(config, process),
        # PyTorch's AdamW steps on a CPU as well; DeepSpeed's own would have to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }
    given = config.deepspeed_json
    assert not isinstance(given, str), "it was read where the run began"
    return laid_over(ours, given or {})


def _zero_config(config: EngineConfig, process: Process) -> dict[str, Any]:
    on_gpu = process.torch_device.type != "cpu"
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        # Elements, not bytes. DeepSpeed's 5e8 would make two buffers of 2 GB each on a GPU.
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
        # A CPU has no second stream to overlap with, and nothing there fragments: a bucket that is newly mapped in
        # each step costs it a fifth of the whole update (3M parameters, 2 workers on 2 cores).
        "overlap_comm": on_gpu,
        "contiguous_gradients": on_gpu,
    }
    # Page-locked memory is for copies to a GPU.
    there = {"device": "cpu", "pin_memory": on_gpu}
    if config.offload_optimizer:
        zero["offload_optimizer"] = there
    if config.offload_params:
        zero["offload_param"] = there
    return zero


def ensure_process_group(process: Process) -> None:
    """Uses the process group that the launcher made (Ray does), or makes one where that needs no guess.

    A single process gets a store in memory; the ports that gloo and NCCL open all the same are on the loopback.

    Raises:
        RuntimeError: There are several processes, and nothing says how they find each other.
    """
    if dist.is_initialized():
        if dist.get_world_size() != process.world_size:
            raise RuntimeError(f"the process group has {dist.get_world_size()} ranks, the job {process.world_size}")
        return
    backend = "nccl" if process.torch_device.type == "cuda" else "gloo"
    if process.world_size == 1:
        listen_on_loopback()
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not listed as exported
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    elif "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        dist.init_process_group(backend, rank=process.rank, world_size=process.world_size)
    else:
        raise RuntimeError("start several processes with Ray or torchrun: MASTER_ADDR and MASTER_PORT are not set")


def _import_deepspeed(process: Process) -> Any:
    # DeepSpeed reads both variables: the first when it is imported, the second, the GPU's number, when it initialises.
    if process.torch_device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    index = process.torch_device.index
    os.environ["LOCAL_RANK"] = str(process.local_rank if index is None else index)
    deepspeed = importlib.import_module("deepspeed")
    ops = importlib.import_module("deepspeed.ops")
    vars(ops)["__compatible_ops__"] = {}
    # It logs to stdout by a handler of its own, which would break `--json`.
    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.ERROR)
    return deepspeed
