"""The search for the largest micro-batch of each pruning, held against what the bytes kept for backward predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.progress import ProgressDisplay
from launch.scaling.config import ScaleConfig, pruning_name
from launch.scaling.grid import Trial, settle_one
from launch.scaling.trial import FAILED, OK, OUT_OF_MEMORY, Work, carried_out
from pipeline.measure.largest_batch import Bounds, Probe, Search, search
from pipeline.measure.scale_trial import TrialPlan

_GIB = 2**30


@dataclass(frozen=True)
class Prober:
    """Makes probes: a few updates without accumulation, in a process that ends above its limit.

    Attributes:
        config: Of the experiment.
        files: Of the run that all share.
        out: Folder of the experiment.
        digest: Of the data.
        display: Is told what happens.
        workers: Processes that train together.
    """

    config: ScaleConfig
    files: Sequence[Path]
    out: Path
    digest: str
    display: ProgressDisplay
    workers: int

    @property
    def bounds(self) -> Bounds:
        """Of each search."""
        asked = self.config.largest
        assert asked.memory_gib is not None
        limit = int(asked.memory_gib * _GIB)
        return Bounds(limit_bytes=limit, first=asked.first, step=asked.step, most=asked.most, probes=asked.probes)

    def compared(self) -> dict[str, Any]:
        """What was found for each pruning; the first one is what the others' gains are against."""
        found = [self._of(pruning_name(value)) for value in self.config.largest.pruning]
        return {
            "limit_bytes": self.bounds.limit_bytes,
            "workers": self.workers,
            "found": [with_gain(each, found[0]) for each in found],
        }

    def _of(self, pruning: str) -> dict[str, Any]:
        kept = self._carry_out(pruning, self.bounds.first[1], "saved", workers=1)
        if kept["status"] != OK:
            raise UserError(f"the bytes that pruning {pruning} keeps could not be counted: {kept['reason']}")
        reasons = dict[int, str]()

        def measure(batch: int) -> Probe:
            probe, reasons[batch] = self._probe(pruning, batch)
            return probe

        searched = search(measure, self.bounds)
        return entry_of(pruning, searched, kept["saved_bytes"], reasons)

    def _probe(self, pruning: str, batch: int) -> tuple[Probe, str]:
        found = self._carry_out(pruning, batch, "probe", self.workers)
        if found["status"] not in (OK, OUT_OF_MEMORY):
            raise UserError(f"a micro-batch of {batch} with pruning {pruning} was {found['status']}: {found['reason']}")
        fits, peak = found["status"] == OK, found.get("peak_bytes") or self.bounds.limit_bytes
        words = f"{peak / _GIB:.3f} GiB" if fits else found["reason"]
        self.display.say(f"micro-batch {batch}, pruning {pruning}: {'fits' if fits else 'does not fit'} ({words})")
        return Probe(batch, fits, peak), found["reason"]

    def _carry_out(self, pruning: str, batch: int, kind: str, workers: int) -> dict[str, Any]:
        probes = kind == "probe"
        steps = self.config.largest.steps
        # One stream, which every batch divides into; the noise scale would keep norms of its own.
        shared = {**self.config.shared, "loader.streams": 1, "pretrain.loop.noise_scale.every": 0}
        config = replace(self.config, shared=shared, samples=1, warmup=0, min_steps=steps)
        trial = Trial(global_batch=batch * workers, pruning=pruning, workers=workers)
        work = Work(
            name=f"{kind}-{pruning}-{batch}",
            run=settle_one(config, self.files, trial),
            plan=TrialPlan(steps=steps, memory_bytes=self.bounds.limit_bytes if probes else None),
            seconds=self.config.limits.seconds,
            function="run_trial" if probes else "run_saved",
            exact_memory=True,
        )
        found = carried_out(work, self.out / "largest" / work.name, self.out, self.digest, self.display)
        if found["status"] == FAILED:
            raise UserError(f"{work.name} failed: {found['reason']}")
        return found


def entry_of(pruning: str, searched: Search, saved: Mapping[str, float], reasons: Mapping[int, str]) -> dict[str, Any]:
    """What a search found, JSON-able.

    Args:
        pruning: Its name.
        searched: The search.
        saved: Bytes that a sample keeps for the backward, by part of the model.
        reasons: Why batches did not fit.
    """
    largest, line, above = searched.largest, searched.line, searched.next_up
    predicted = searched.predicted_bytes
    measured = None if largest is None else largest.peak_bytes
    return {
        "pruning": pruning,
        "largest": None if largest is None else largest.batch,
        "next_up": None if above is None else above.batch,
        "settled": searched.settled,
        "reason": "" if above is None else reasons[above.batch],
        "probes": [vars(probe) for probe in searched.probes.values()],
        "fixed_bytes": None if line is None else line.fixed_bytes,
        "sample_bytes": None if line is None else line.sample_bytes,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "prediction_error": None if predicted is None or measured is None else predicted / measured - 1,
        "saved_bytes": dict(saved),
        "saved_bytes_per_sample": sum(saved.values()),
    }


def with_gain(entry: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with its gain over the reference: in batches, as the bytes kept predict it, and the ratio of both."""
    predicted = reference["saved_bytes_per_sample"] / entry["saved_bytes_per_sample"]
    if entry["largest"] is None or reference["largest"] is None:
        return {**entry, "gain": None, "predicted_gain": predicted, "gain_share": None}
    gain = entry["largest"] / reference["largest"]
    return {**entry, "gain": gain, "predicted_gain": predicted, "gain_share": gain / predicted}
