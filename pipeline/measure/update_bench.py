"""Whole updates of pre-training, pruned or not, on one model: their time and memory, with batches of any size.

What `bench` leaves out is in them: momentum update, clipping, AdamW, queue. The engine is the plain one, `torch`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.engine import EngineConfig, OptimizerConfig, split_decay
from pipeline.engine_torch import TorchEngine
from pipeline.measure.bench import promised, utilisation
from pipeline.measure.bench_cases import REFERENCE, BenchConfig, random_batch, step_parts
from pipeline.measure.peak import peak_flops
from pipeline.measure.saved_bytes import saved_bytes
from pipeline.measure.timing import interleave, median_interval, paired_ratios, spread, timed
from pipeline.models.compiling import compile_blocks, leave_uncompiled
from pipeline.process import Process

_WARMUP = 2
_FEWEST_ROUNDS = 6  # give an interval


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How updates are measured.

    Attributes:
        bench: Sizes and variants; its `compile` and rounds do not count.
        backend: Of torch.compile; None for no compilation.
        seconds: About how long timing may take with all before it: building the model, and the first updates, which
            compile.
        most_rounds: Of timing, should there be time for more; each runs every variant once.
    """

    bench: BenchConfig
    backend: str | None = "inductor"
    seconds: float = 60.0
    most_rounds: int = 40


class UpdateBench:
    """One model with its optimizer, which can be updated with any variant and batch.

    Args:
        config: What is measured.
        dynamic: Whether one compilation serves all batches.
    """

    def __init__(self, config: UpdateConfig, dynamic: bool = False) -> None:
        torch.set_num_threads(config.bench.threads)
        self.begun = time.monotonic()
        self.config = config
        self.device = torch.device(config.bench.device)
        self.parts = step_parts(replace(config.bench, compile=False))
        self.module = self.parts.task.module.train()
        self.names = list(self.parts.forwards)
        process = Process(device=config.bench.device)
        groups = split_decay(self.module)
        self.engine = TorchEngine(EngineConfig(name="torch"), OptimizerConfig(), self.module, groups, process)
        self.not_compiled = "as asked" if config.backend is None else ""
        if config.backend is not None:
            compile_blocks(self.module, dynamic=dynamic, backend=config.backend)

    def update(self, name: str, batch: ImageTextBatch) -> None:
        """What the training loop does with a batch."""
        task = self.parts.task
        task.before_update(1.0)
        for losses in task.losses_of_parts(self.parts.forwards[name], [batch], 1.0):
            self.engine.step(losses.total, 1.0)
        task.after_update(1.0)

    def warm_up(self, name: str, batch: ImageTextBatch, updates: int = 1) -> float:
        """Seconds of the last of some updates; compilation is given up where it fails, and why is kept."""
        try:
            return [timed(partial(self.update, name, batch), self.device) for _ in range(updates)][-1]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.not_compiled:
                raise
            # A compiler fails in many ways; the step as it is runs all the same, and the table says so.
            # Its first line may say no more than which backend failed.
            said = " ".join(str(error).split("\n")[:2])
            self.not_compiled = f"{type(error).__name__}: {said}"
        self._forget()
        leave_uncompiled(self.module)
        return self.warm_up(name, batch, updates)

    def rows(self) -> list[dict[str, Any]]:
        """Time and memory of each variant, in turn with the others."""
        batch = random_batch(self.config.bench)
        for name in self.names:
            self.warm_up(name, batch)  # compiles, or finds that it cannot
        took = [self.warm_up(name, batch, _WARMUP) for name in self.names]
        left = self.config.seconds - (time.monotonic() - self.begun)
        rounds = max(_FEWEST_ROUNDS, min(int(left / sum(took)), self.config.most_rounds))
        runs = {name: partial(timed, partial(self.update, name, batch), self.device) for name in self.names}
        seconds = interleave(runs, rounds=rounds, warmup=1, seed=self.config.bench.seed)
        peaks = {name: self.peak(name, batch) for name in self.names}
        return [self._row(name, seconds[name], seconds[REFERENCE], peaks[name]) for name in self.names]

    def _row(self, name: str, seconds: Sequence[float], reference: Sequence[float], peak: int) -> dict[str, Any]:
        bench, macs = self.config.bench, self.parts.macs
        ratios, middle = paired_ratios(reference, seconds), spread(seconds).median
        low, high = median_interval(ratios) or (None, None)
        limit = peak_flops(torch.cuda.get_device_name() if self.device.type == "cuda" else "", bench.dtype)
        return {
            "name": name,
            "batch": bench.batch,
            "seconds": middle,
            "samples_per_second": bench.batch / middle,
            "ratio": spread(ratios).median,
            "ratio_low": low,
            "ratio_high": high,
            **promised(macs[name], macs[REFERENCE]),
            "mfu": utilisation(macs[name], bench.batch, middle, limit),
            "peak_bytes": peak,
            "rounds": len(seconds),
            "not_compiled": self.not_compiled,
        }

    def peak(self, name: str, batch: ImageTextBatch) -> int:
        """Bytes that an update allocates at most; on a CPU, where nobody counts, those kept for its backward."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.update(name, batch)
            return torch.cuda.max_memory_allocated()
        standing = [*self.module.parameters(), *self.parts.task.tensors().values()]
        # What is trained has a gradient and two moments besides.
        standing_bytes = sum(t.nbytes * (4 if t.requires_grad else 1) for t in standing)
        return standing_bytes + saved_bytes(partial(self._loss, name, batch), standing)

    def _loss(self, name: str, batch: ImageTextBatch) -> None:
        self.parts.total(name, batch)
        self.parts.task.drop_update()

    def peak_of(self, name: str, size: int) -> int | None:
        """`peak` of a batch of another size; None where it found no room."""
        try:
            batch = random_batch(replace(self.config.bench, batch=size))
            if self.device.type == "cuda":
                self.warm_up(name, batch)
            return self.peak(name, batch)
        except torch.OutOfMemoryError:
            pass  # its frames hold the tensors: room is made behind it
        self._forget()
        return None

    def _forget(self) -> None:
        """Lets go of what an update that broke off has left."""
        self.module.zero_grad(set_to_none=True)
        self.parts.task.drop_update()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
