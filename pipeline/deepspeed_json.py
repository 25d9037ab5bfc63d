"""DeepSpeed's own configuration: settings of the user's that are laid over what is written from typed keys."""

import contextlib
import difflib
import importlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.errors import UserError

_OWNED = {
    "train_batch_size": "the stage's loop.global_batch",
    "train_micro_batch_size_per_gpu": "engine.micro_batch",
    "gradient_accumulation_steps": "engine.micro_batch",
    "managed_gradient_accumulation": "engine.micro_batch",
    "gradient_clipping": "engine.grad_clip",
    "optimizer": "the stage's optimizer",
    "zero_allow_untested_optimizer": "the stage's optimizer",
    "zero_force_ds_cpu_optimizer": "engine.offload_optimizer",
    "scheduler": "the stage's loop.schedule",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "bfloat16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
    "activation_checkpointing": "engine.recompute",
    "compile": "engine.compile",
    "checkpoint": "checkpoint",
    "elasticity": "cluster.workers",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.cpu_offload": "engine.offload_optimizer",
    "zero_optimization.cpu_offload_params": "engine.offload_params",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.offload_param.device": "engine.offload_params",
}
"""Settings of DeepSpeed's that have a key of ours."""

_UNKNOWN_TO_US = {
    "zero_optimization.zenflow": "updates some weights later than others",
    "hybrid_engine": "makes another model of it for generating texts",
    "zero_optimization.mics_shard_size": "splits weights among some of the ranks",
    "zero_optimization.zero_hpz_partition_size": "keeps second copies of weights",
    "zero_optimization.zero_quantized_weights": "keeps weights in 8 bits",
    "zero_optimization.zero_quantized_nontrainable_weights": "keeps weights in 8 bits",
    "tensor_parallel": "splits layers",
    "sequence_parallel_size": "splits texts",
    "pipeline": "splits the model by layers",
}
"""Settings that our checkpoints do not know."""

_SECTIONS = {
    "zero_optimization",
    "comms_logger",
    "flops_profiler",
    "monitor_config",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "aio",
    "data_types",
}
"""Sections whose names stand elsewhere in DeepSpeed."""


def read_deepspeed_json(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, or those given, checked for what has a key of ours.

    Raises:
        UserError: The file cannot be read, or a setting is not the user's.
    """
    settings = _load(given) if isinstance(given, str) else dict(given)
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise UserError(f"engine.deepspeed_json sets zero_optimization to {zero!r}, an object is wanted: {{...}}")
    _check_zero(zero)
    for key in _dotted(settings):
        for prefix in _prefixes(key):
            if prefix in _OWNED:
                raise UserError(f"engine.deepspeed_json sets {prefix}, which is {_OWNED[prefix]}; set that")
            if prefix in _UNKNOWN_TO_US:
                raise UserError(
                    f"engine.deepspeed_json sets {prefix}, which {_UNKNOWN_TO_US[prefix]}: checkpoints do not know "
                    "that; leave it out"
                )
    return settings


def _check_zero(zero: Mapping[str, Any]) -> None:
    """Refuses what DeepSpeed asserts only when training begins."""
    if zero.get("legacy_stage1"):
        raise UserError("engine.deepspeed_json sets zero_optimization.legacy_stage1, which DeepSpeed no longer has")
    bucket = zero.get("allgather_bucket_size", 0)
    if isinstance(bucket, int | float) and bucket % 2:
        raise UserError(
            f"engine.deepspeed_json sets zero_optimization.allgather_bucket_size={bucket}, which must be even; give "
            f"{bucket + 1:g}"
        )


def check_stage(settings: Mapping[str, Any], stage: int) -> None:
    """Refuses what does not go with a ZeRO stage, which DeepSpeed asserts only when training begins.

    Raises:
        UserError: Naming both.
    """
    scatters = stage >= 2 and settings.get("zero_optimization", {}).get("reduce_scatter", True)
    scaled = {"prescale_gradients": False, "gradient_predivide_factor": 1.0}
    for key, plain in scaled.items():
        if scatters and settings.get(key, plain) != plain:
            raise UserError(
                f"engine.deepspeed_json sets {key}, which does not go with engine.zero_stage={stage}; give 0 or 1, or "
                "set zero_optimization.reduce_scatter to false"
            )


def laid_over(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both settings; where both have one, theirs, and mappings in them likewise."""
    merged = dict(ours)
    for key, value in theirs.items():
        mine = merged.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        merged[key] = laid_over(mine, value) if both else value  # type: ignore[arg-type]
    return merged


def check_settings(settings: str | Mapping[str, Any] | None) -> None:
    """Asks DeepSpeed whether it knows these settings; it is imported for that, which takes seconds.

    Raises:
        UserError: It does not.
    """
    if not settings:
        return
    assert not isinstance(settings, str), "it was read where the run began"
    with contextlib.redirect_stdout(io.StringIO()):  # its log
        constants = vars(importlib.import_module("deepspeed.runtime.constants"))
        config = importlib.import_module("deepspeed.runtime.config").DeepSpeedConfig
        known = {value for value in constants.values() if isinstance(value, str)} | _SECTIONS
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"engine.deepspeed_json sets {key}, which DeepSpeed does not know{hint}")
        try:
            config({**settings, "train_micro_batch_size_per_gpu": 1})
        except Exception as error:  # it refuses by assertions, errors of pydantic's, and others of its own
            first = " ".join(str(error).split("For further")[0].split()[:30])
            raise UserError(f"engine.deepspeed_json sets what DeepSpeed refuses: {first}") from error


def _load(given: str) -> dict[str, Any]:
    shown = given if len(given) < 60 else f"{given[:57]}..."
    try:
        text = given if given.lstrip().startswith("{") else Path(given).expanduser().read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"engine.deepspeed_json={shown} cannot be read: {error.strerror}; give a JSON file") from error
    except ValueError as error:
        raise UserError(f"engine.deepspeed_json={shown} does not hold valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"engine.deepspeed_json={shown} holds a {type(content).__name__}, an object is wanted: {{...}}")
    return content


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))
