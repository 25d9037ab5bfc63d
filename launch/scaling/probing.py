"""The search for the largest micro-batch of each pruning, held against what the bytes kept for backward predict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.config import RunConfig
from launch.progress import ProgressDisplay
from launch.scaling.config import ScaleConfig, pruning_name
from launch.scaling.grid import Trial, settle_one
from launch.scaling.trial import OK, OUT_OF_MEMORY, Work, carried_out, machine_in_words
from pipeline.measure.largest_batch import Bounds, Probe, Search, search
from pipeline.measure.scale_trial import TrialPlan

_GIB = 2**30


class ProbeEnded(Exception):
    """A probe that tells nothing of memory, for it failed or its time was over."""


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
        limit_bytes: That a probe must stay within.
    """

    config: ScaleConfig
    files: Sequence[Path]
    out: Path
    digest: str
    display: ProgressDisplay
    workers: int
    limit_bytes: int

    @property
    def bounds(self) -> Bounds:
        """Of each search."""
        asked = self.config.largest
        return Bounds(
            limit_bytes=self.limit_bytes, first=asked.first, step=asked.step, most=asked.most, probes=asked.probes
        )

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
        faults = [] if kept["status"] == OK else [f"the bytes kept could not be counted: {kept['reason']}"]
        searched, reasons, machines = Search(self.bounds), dict[int, str](), dict.fromkeys([_machine(kept)])

        def measure(batch: int) -> Probe:
            found = self._carry_out(pruning, batch, "probe", self.workers)
            machines[_machine(found)] = None
            searched.probes[batch], reasons[batch] = self._probe(pruning, batch, found), found["reason"]
            return searched.probes[batch]

        try:
            search(measure, self.bounds)
        except ProbeEnded as error:
            faults.append(str(error))
        for fault in faults:
            self.display.say(f"largest micro-batch, pruning {pruning}: {fault}")
        return entry_of(pruning, searched, kept.get("saved_bytes", {}), reasons, "; ".join(faults), machines)

    def _probe(self, pruning: str, batch: int, found: Mapping[str, Any]) -> Probe:
        if found["status"] not in (OK, OUT_OF_MEMORY):
            raise ProbeEnded(f"a micro-batch of {batch} was {found['status']}: {found['reason']}")
        fits, peak = found["status"] == OK, found.get("peak_bytes") or self.bounds.limit_bytes
        words = f"{peak / _GIB:.3f} GiB" if fits else found["reason"]
        self.display.say(f"micro-batch {batch}, pruning {pruning}: {'fits' if fits else 'does not fit'} ({words})")
        return Probe(batch, fits, peak)

    def _carry_out(self, pruning: str, batch: int, kind: str, workers: int) -> dict[str, Any]:
        probes = kind == "probe"
        work = Work(
            name=f"{kind}-{pruning}-{batch}",
            run=probe_run(self.config, self.files, pruning, batch, workers),
            plan=TrialPlan(steps=self.config.largest.steps, memory_bytes=self.bounds.limit_bytes if probes else None),
            seconds=self.config.limits.seconds,
            function="run_trial" if probes else "run_saved",
            exact_memory=True,
        )
        return carried_out(work, self.out / "largest" / work.name, self.out, self.digest, self.display)


def probe_run(config: ScaleConfig, files: Sequence[Path], pruning: str, batch: int, workers: int) -> RunConfig:
    """The run of a probe.

    Raises:
        UserError: It does not fit together.
    """
    # One stream, which every batch divides into; the noise scale would keep norms of its own.
    shared = {**config.shared, "loader.streams": 1, "pretrain.loop.noise_scale.every": 0}
    short = replace(config, shared=shared, samples=1, warmup=0, min_steps=config.largest.steps)
    return settle_one(short, files, Trial(global_batch=batch * workers, pruning=pruning, workers=workers))


def settle_probes(config: ScaleConfig, files: Sequence[Path], workers: int) -> list[RunConfig]:
    """The runs of the probes that each search begins with: what is amiss with them shows before anything starts.

    Raises:
        UserError: One does not fit together.
    """
    runs = []
    for pruning in map(pruning_name, config.largest.pruning):
        for batch, processes in ((config.largest.first[1], 1), *((batch, workers) for batch in config.largest.first)):
            try:
                runs.append(probe_run(config, files, pruning, batch, processes))
            except UserError as error:
                raise UserError(f"largest: a micro-batch of {batch} with pruning {pruning}: {error}") from error
    return runs


def entry_of(
    pruning: str,
    searched: Search,
    saved: Mapping[str, float],
    reasons: Mapping[int, str],
    fault: str = "",
    machines: Iterable[str] = (),
) -> dict[str, Any]:
    """What a search found, JSON-able.

    Args:
        pruning: Its name.
        searched: The search.
        saved: Bytes that a sample keeps for the backward, by part of the model.
        reasons: Why batches did not fit.
        fault: Why something of it is missing.
        machines: That its probes ran on, in words.
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
        "saved_bytes_per_sample": sum(saved.values()) if saved else None,
        "fault": fault,
        "machines": list(machines),
    }


def _machine(found: Mapping[str, Any]) -> str:
    return machine_in_words(found["machine"])


def with_gain(entry: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with its gain over the reference: in batches, as the bytes kept predict it, and the ratio of both."""
    kept, kept_by_reference = entry["saved_bytes_per_sample"], reference["saved_bytes_per_sample"]
    predicted = None if kept is None or kept_by_reference is None else kept_by_reference / kept
    if entry["largest"] is None or reference["largest"] is None:
        return {**entry, "gain": None, "predicted_gain": predicted, "gain_share": None}
    gain = entry["largest"] / reference["largest"]
    return {
        **entry,
        "gain": gain,
        "predicted_gain": predicted,
        "gain_share": None if predicted is None else gain / predicted,
    }
