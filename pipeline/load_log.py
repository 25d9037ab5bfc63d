"""How the trainer is fed: its share of time waiting for data, what a sample costs workers, what they skip and why."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.data.batch import ImageTextBatch
from pipeline.data.quarantine import kind_of
from pipeline.objectives.gather import gather_constant

_MOST_REASONS = 16  # reasons are told apart by words that data can influence; the log must not grow with them
_OTHER = "other reasons"
_ROOM = 8192  # bytes that a process sends; its reasons fit in whatever they are


@dataclass(kw_only=True)
class LoadTally:
    """What happened since the last line of the log, in one process or in several.

    Attributes:
        wait: seconds that the trainer stood still for want of a batch.
        total: seconds of whole steps, that included.
        samples: that were delivered.
        work: of the workers for them, by the names of `LoadWork`.
        skips: bad samples by reason.
    """

    wait: float = 0.0
    total: float = 0.0
    samples: int = 0
    work: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)

    def add(self, batch: ImageTextBatch, wait: float, total: float) -> None:
        """Takes in a step.

        Args:
            batch: that it trained on.
            wait: seconds until the batch was there.
            total: seconds of the step, with the waiting.
        """
        self.wait += wait
        self.total += total
        self.work.update(vars(batch.work))
        self.samples += len(batch)
        for skip in batch.skipped:
            self._skip(kind_of(skip.reason), 1)

    def _skip(self, kind: str, count: int) -> None:
        self.skips[kind if kind in self.skips or len(self.skips) < _MOST_REASONS else _OTHER] += count

    def over_processes(self, device: torch.device) -> "LoadTally":
        """The sum over all processes, each of which must call it."""
        text = json.dumps(vars(self), ensure_ascii=False).encode(errors="replace").ljust(_ROOM)
        parts = gather_constant(torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device))
        whole = LoadTally()
        for part in parts.cpu().view(-1, _ROOM):
            other = json.loads(bytes(part.tolist()))
            for kind, count in other.pop("skips").items():
                whole._skip(kind, count)
            whole.work.update(other.pop("work"))
            for name, value in other.items():
                setattr(whole, name, getattr(whole, name) + value)
        return whole

    def values(self) -> dict[str, Any]:
        """What a line of metrics.jsonl says of it: a share, milliseconds a sample, and counts where there are any."""
        line: dict[str, Any] = {"data_wait": round(self.wait / max(1e-9, self.total), 4)}
        for part in ("read", "decode", "text"):
            line[f"{part}_ms"] = round(1000 * self.work[part] / max(1, self.samples), 3)
        parts = self.work["hits"] + self.work["misses"]
        if parts:
            line["cache_hits"] = round(self.work["hits"] / parts, 4)
            line["fetched_mb"] = round(self.work["fetched_bytes"] / 1e6, 3)
            line["fetch_failures"] = self.work["failures"]
        return line | ({"skips": dict(self.skips)} if self.skips else {})
