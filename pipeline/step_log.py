"""What is written of steps: lines of metrics.jsonl, the progress file, the tracker."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.load_log import LoadTally
from pipeline.log_facts import LogFacts, memory
from pipeline.loop_config import LoopConfig
from pipeline.progress import MetricsLog, ProgressFile
from pipeline.stage import Stage


class StepLog:
    """Means since the last multiple of `log_every` steps, to metrics.jsonl and the progress file.

    The main process writes, and what it writes of values is its own; how data come is told of all processes.

    Args:
        stage: Folder, process and tracker.
        config: Durations.
        step: Steps done before.
        facts: What is said besides what steps compute.
        begun: `begun_line` of before.
        more: Gives further values of the moment that a line is written at.
    """

    def __init__(
        self,
        stage: Stage,
        config: LoopConfig,
        step: int,
        facts: LogFacts | None = None,
        begun: Mapping[str, Any] | None = None,
        more: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.main = stage.process.is_main
        self.device = stage.process.torch_device
        self.devices = stage.process.world_size
        self.tracker = stage.tracker
        self.facts = facts or LogFacts(restarts=stage.tracker.restarts)
        self.config = config
        self.more = more
        self.load = LoadTally()  # the loop adds to it
        self.fed = ""  # words for the progress file: speed, and share of time without data
        begun = begun or {"count": 0, "sums": {}}
        self.sums = {name: torch.tensor(float.fromhex(value)) for name, value in begun["sums"].items()}
        self.count: int = begun["count"]
        self.last: tuple[int, float] | None = None  # step and seconds of the line before, in this process
        if self.main:
            stage.folder.mkdir(parents=True, exist_ok=True)
            self.metrics = MetricsLog(stage.folder / "metrics.jsonl", step)
            self.progress = ProgressFile(stage.folder / "progress.json", 1.0, "share")

    def begun_line(self) -> dict[str, Any]:
        """What is taken in for the next line, JSON-able: it goes on after a restart. Clocks begin anew."""
        sums = {name: float(value).hex() for name, value in self.sums.items()}  # exact, and JSON knows no infinity
        return {"count": self.count, "sums": sums}

    def add(self, step: int, seconds: float, progress: float, values: Mapping[str, Tensor]) -> None:
        """Take in one step; what its batch took is added to `load` before. Every process calls it for every step."""
        self.count += 1
        if not self.main:
            values = {}  # nobody would read them
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value  # on the device: no transfer before a line
        if step % self.config.log_every == 0:
            self._write(step, seconds)
        if self.main:
            self.progress.show(progress, f"loss {float(values['loss']):.3f}{self.fed}")

    def amend(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add scores to the line of this step, which is written now, due or not."""
        if self.count:
            self._write(step, seconds)
        if self.main:
            self.tracker.log(self.metrics.amend({"step": step, "seconds": round(seconds, 2), **values}))

    def finish(self, step: int, seconds: float) -> None:
        """Write what is left."""
        if self.count:
            self._write(step, seconds)
        if self.main:
            self.progress.show(1.0, f"{step:,} steps", now=True)

    def _write(self, step: int, seconds: float) -> None:
        load = self.load.over_processes(self.device).values()  # all processes come here after the same step
        if self.main:
            self._write_line(step, seconds, load)
        self.last = (step, seconds)
        self.sums, self.count, self.load = {}, 0, LoadTally()

    def _write_line(self, step: int, seconds: float, load: Mapping[str, Any]) -> None:
        names = list(self.sums)
        means = (torch.stack([self.sums[name].cpu() for name in names]) / self.count).tolist()
        line: dict[str, Any] = {"step": step, "samples": step * self.config.global_batch, "seconds": round(seconds, 2)}
        self.fed = f", {load['data_wait']:.0%} waiting for data"
        if self.last is not None:
            rate = (step - self.last[0]) * self.config.global_batch / max(1e-9, seconds - self.last[1])
            line |= self.facts.speed(rate, self.devices)
            self.fed = f", {rate:.0f} samples/s{self.fed}"
        values = dict(zip(names, means, strict=True))
        line |= {**load, **memory(str(self.device)), **values, **self.more()}
        line |= self.facts.values(values.get("lr", 0.0))
        self.tracker.log(self.metrics.write(line))
