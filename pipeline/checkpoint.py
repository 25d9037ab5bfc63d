"""Checkpoints: all state of a run, copied to host memory while training waits and written while it goes on.

    store = CheckpointStore(folder, config, process)
    store.begin(step, engine, task.tensors(), values)     # training goes on
    ...
    store.finish()                                        # on all ranks: waits, and raises what went wrong

They fit any number of ranks and any ZeRO stage. Nothing is unpickled. See `checkpoint_places` and docs/checkpoints.md.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from data_prep.errors import DiskFull, NoAnswer, UserError
from data_prep.files import atomic_dir, read_described, read_json, sha256_file, write_json
from pipeline.checkpoint_places import COMPLETE, MANIFEST, Place, check_disk, name_of, open_place
from pipeline.checkpoint_rules import CheckpointConfig, Guard, Saved, finite, kept
from pipeline.data.text import Tokenizer
from pipeline.engine import Engine
from pipeline.fragments import FragmentFiles
from pipeline.host_copies import HostCopies
from pipeline.lost import is_loss
from pipeline.process import Process
from pipeline.rng_state import rng_state, seed_everything, set_rng_state
from pipeline.tensor_files import read_tensors, write_tensors
from pipeline.together import RankFailedError, open_group, together, together_at_length

__all__ = ["Checkpoint", "CheckpointConfig", "CheckpointStore", "RankFailedError", "export_weights", "load_weights"]

log = logging.getLogger(__name__)

_VERSION = 2
_STATE = "state.safetensors"
_VALUES = "values.json"
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_DAMAGED = "is damaged (delete this folder to continue from the checkpoint before it)"
_LEAVING_SECONDS = 5.0  # for other ranks whose silence nothing else bounds
_MOST_UNANSWERED = 3  # saves in a row that a store may leave without an answer


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        place: In which it lies.
        name: Of its folder.
        step: The step that it was saved after.
    """

    place: Place
    name: str
    step: int

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    def restore(self, engine: Engine, process: Process) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Brings the engine and the random generators of every rank back; every rank must call it.

        On as many ranks as it was saved on, all go on as if nothing had happened; on others the random generators begin
        anew, each rank's at a place of its own.

        Returns:
            The tensors (on the CPU) and values that were given to the store.

        Raises:
            UserError: It holds another model, or a file is damaged.
        """
        with self.place.local(self.name, process) as folder:
            manifest = read_json(folder / MANIFEST)
            if manifest["version"] != _VERSION:
                raise UserError(
                    f"{self} has checkpoint format {manifest['version']}, this version of trimline reads "
                    f"{_VERSION}; use the version that wrote it, or start over with --fresh"
                )
            together(process, lambda: self._check_files(folder, manifest["files"], process), str(self))
            self._load_engine(folder, engine, manifest)
            tensors = read_tensors(folder / _STATE)
            values: dict[str, Any] = read_json(folder / _VALUES)
            # Last: whatever loading drew must not count.
            if manifest["layout"]["workers"] == process.world_size:
                set_rng_state(read_tensors(folder / _rank_file(process.rank)), process)
            else:
                seed_everything(self.step, process.rank)
        return tensors, values

    def _load_engine(self, folder: Path, engine: Engine, manifest: dict[str, Any]) -> None:
        saved, wanted = manifest["layout"], engine.layout()
        if saved != wanted:
            log.info("%s was saved with %s; this run has %s", self, _describe(saved), _describe(wanted))
        try:
            engine.load(FragmentFiles(sorted(folder.glob("engine_*.safetensors"))), manifest["engine"])
        except UserError as error:
            raise UserError(f"{self}: {error}; give what it was saved with, or start over with --fresh") from error

    def _check_files(self, folder: Path, files: dict[str, dict[str, Any]], process: Process) -> None:
        found = {path.name for path in folder.iterdir()} - {MANIFEST, COMPLETE}
        if found != set(files):
            raise UserError(f"{self} {_DAMAGED}: it does not hold the files that its manifest names")
        for name in sorted(files)[process.rank :: process.world_size]:
            if sha256_file(folder / name) != files[name]["sha256"]:
                raise UserError(f"{self} {_DAMAGED}: {name} is not what was written")


class CheckpointStore:
    """The checkpoints of one training stage; every rank makes one and calls its methods together with the others.

    Args:
        where: Folder or URL that holds one folder for each checkpoint; made at the first save.
        config: Which of them stay.
        process: This rank.
        fingerprint: Of what is trained; checkpoints of something else are not gone on from.
        note: File that is to say where the newest one lies, for those who do not see `where`; None for no file.
        guard: What is asked and told meanwhile.

    Raises:
        UserError: Nothing here can write there.
    """

    def __init__(
        self,
        where: Path | str,
        config: CheckpointConfig | None = None,
        process: Process | None = None,
        fingerprint: str = "",
        note: Path | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.chosen_by: str | None = None  # a metric of which the highest stays too
        self.note = note
        self._guard = guard or Guard()
        self.config = config or CheckpointConfig()
        self.process = process or Process()
        self.place = open_place(where, self.process)
        self._host = HostCopies()
        self._group: dist.ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._there = False
        self._unanswered = 0  # saves in a row

    @property
    def has_any(self) -> bool:
        """Whether there is a checkpoint to go back to, or one is being written; the same on all ranks."""
        return self._there or self._thread is not None

    @property
    def failed(self) -> bool:
        """Whether a save in the background has failed: then all ranks are to call `finish`, which raises it."""
        return self._failure is not None

    def wants(self, step: int) -> bool:
        """Whether a checkpoint after this step is one that stays for its number."""
        every = self.config.keep_every_steps
        return every > 0 and step > 0 and step % every == 0

    def save(self, step: int, engine: Engine, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Begins a checkpoint and waits until it is complete; see `begin` and `finish`."""
        self.begin(step, engine, tensors, values)
        self.finish()

    def begin(
        self,
        step: int,
        engine: Engine,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Copies all state to host memory, and begins to write it in the background; first it waits for the last one.

        Args:
            step: Steps done so far.
            engine: Weights and optimizer state.
            tensors: What else the run needs, alike on all ranks; rank 0's are written.
            values: JSON-able; alike on all ranks.
            metrics: Means since the last one, by which the best ones are told; empty where there was no step since.
            scores: On held-out data, that few checkpoints have.

        Raises:
            UserError: The one before could not be written, or the disk has no room for this one; or a metric that is
                not there.
        """
        self.finish(must=False)
        self._check_metric(metrics or {})
        if self.process.world_size > 1 and self._group is None:
            # Of its own: what is told in the background must not meet what training tells.
            self._group = open_group(self._guard.silent_seconds)
        state = engine.state()
        mine = {f"engine_{self.process.rank}.safetensors": self._host.copy("engine", state.fragments)}
        mine[_rank_file(self.process.rank)] = rng_state(self.process)
        if self.process.is_main:
            mine[_STATE] = self._host.copy("state", tensors)
        if self.config.if_full == "stop":
            check_disk(self.place, self.process, mine.values())
        manifest = {
            "version": _VERSION, "step": step, "layout": engine.layout(), "engine": dict(state.values),
            "metrics": finite({**(metrics or {}), **(scores or {})}), "fingerprint": self.fingerprint,
        }  # fmt: skip
        self._thread = threading.Thread(
            target=self._write, args=(name_of(step), mine, dict(values), manifest), name="checkpoint", daemon=True
        )
        self._thread.start()

    def finish(self, *, must: bool = True) -> None:
        """Waits for what is being written.

        Args:
            must: Whether it may not fail, whatever `if_full` says.

        Raises:
            UserError: The disk or store is full, or left several saves unanswered; on all ranks. Earlier ones stay.
        """
        if self._thread is None:
            return
        self._thread.join()
        failure, self._failure, self._thread = self._failure, None, None
        self._unanswered = self._unanswered + 1 if isinstance(failure, NoAnswer) else 0
        if failure is None:
            return
        if must or not self._bears(failure):
            raise failure
        # Rank 0 clears up after it, for long where a store is silent: who began the next save would count it as lost.
        together(self.process, lambda: None, str(self.place))
        log.warning("going on without a checkpoint: %s", failure)

    def _bears(self, failure: Exception) -> bool:
        """Whether training may go on though a save failed; the same on all ranks, as `together` has it."""
        if self.config.if_full == "go_on":
            return isinstance(failure, DiskFull | NoAnswer)
        return isinstance(failure, NoAnswer) and self._unanswered < _MOST_UNANSWERED

    def leave(self) -> None:
        """Lets go at the end; what is being written is finished unless another rank is needed that does not answer."""
        if self._thread is not None:
            self._thread.join(None if self.process.world_size == 1 or self._guard.silent_seconds else _LEAVING_SECONDS)
        if self._group is not None and (self._thread is None or not self._thread.is_alive()):
            dist.destroy_process_group(self._group)
            self._group = None

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint; None where there is not even a damaged one. The main rank looks for all.

        Raises:
            UserError: There are checkpoints of another training, or damaged ones only, or the store does not answer.
        """

        def look() -> Saved | None:
            return self.place.newest(self.fingerprint) if self.process.is_main else None

        found = together(self.process, look, str(self.place))[0]
        self._there = self._there or found is not None
        return Checkpoint(place=self.place, name=found.name, step=found.step) if found else None

    def _check_metric(self, metrics: Mapping[str, float]) -> None:
        wanted = self.config.best_metric
        if self.config.keep_best and metrics and wanted not in metrics:
            raise UserError(f"checkpoint.best_metric={wanted} is not logged; choose one of {', '.join(metrics)}")

    def _write(
        self, name: str, mine: Mapping[str, Mapping[str, Tensor]], values: dict[str, Any], manifest: dict[str, Any]
    ) -> None:
        """The background's work; every rank comes to the same end."""
        aside: list[Path] = []

        def write() -> dict[str, dict[str, Any]]:
            aside.append(self.place.aside(name, self.process))
            return self._write_files(name, aside[0], mine, values)

        try:
            self._together(lambda: self._change(lambda: self.place.clean(name)))
            files = {file: entry for part in self._together(write) for file, entry in sorted(part.items())}
            whole = {**manifest, "files": files}
            self._together(lambda: self._change(lambda: self.place.publish(name, whole)))
            self._there = True
        except Exception as error:
            self._fail(error)
            self._abandon(name, aside)
            return
        try:
            self._together(lambda: self._tidy(name, manifest["step"]) if self.process.is_main else None)
        except Exception as error:
            self._fail(error)  # no reason to give up the new one

    def _fail(self, error: Exception) -> None:
        self._failure = error
        if is_loss(error) and not isinstance(error, RankFailedError):  # which answers: the next tick tells all
            log.warning("another rank was lost while a checkpoint was written", exc_info=error)
            self._guard.on_loss("another worker was lost while a checkpoint was written")

    def _change(self, change: Callable[[], None]) -> None:
        """Lets the main rank do something to the place, unless another run has it."""
        if self.process.is_main:
            self._guard.check()
            change()

    def _abandon(self, name: str, aside: list[Path]) -> None:
        for folder in aside:
            if self.process.is_main:
                with contextlib.suppress(UserError):  # of another run, whose files may have these names by now
                    self._change(lambda: self.place.abandon(name, folder))  # noqa: B023
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def _together(self, work: Any) -> list[Any]:
        return together_at_length(self.process, work, str(self.place), self._group)

    def _write_files(
        self, name: str, aside: Path, mine: Mapping[str, Mapping[str, Tensor]], values: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Writes this rank's files, and returns their sizes and hashes."""
        for file, tensors in mine.items():
            write_tensors(aside / file, tensors)
        files = list(mine)
        if self.process.is_main:
            write_json(aside / _VALUES, values)
            files.append(_VALUES)
        told = {file: {"bytes": (aside / file).stat().st_size, "sha256": sha256_file(aside / file)} for file in files}
        self.place.deliver(name, aside, files)
        return told

    def _tidy(self, name: str, step: int) -> None:
        if self.note is not None:
            write_json(self.note, {"step": step, "where": f"{self.place}/{name}", "time": time.time()})
        self._remove_old(name)

    def _remove_old(self, name: str) -> None:
        """Removes what no rule keeps; what cannot be removed now is told, and tried again after the next save."""
        try:
            # A damaged one, such as a run has just passed over, must not take the place of one that can be read.
            saved = [entry for entry in self.place.saved() if self.place.is_whole(entry.name)]
            stay = kept(saved, self.config, self.chosen_by) | {name}
            for entry in saved:
                if entry.name not in stay:
                    self.place.remove(entry.name)
        except (OSError, UserError) as error:
            log.warning("older checkpoints in %s stay for now: %s", self.place, error)


def export_weights(
    folder: Path,
    state_dict: Mapping[str, Tensor],
    config: dict[str, Any],
    tokenizer: Tokenizer | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes what others can read: `model.safetensors`, `config.json`, a tokenizer's files; whole or not at all.

    Args:
        folder: To write.
        state_dict: Weights.
        config: For config.json.
        tokenizer: Saved beside them.
        more: Values of further JSON files, by name.
    """
    with atomic_dir(folder) as aside:
        if tokenizer is not None:
            tokenizer.save(aside)
        write_tensors(aside / _WEIGHTS, state_dict, metadata={"format": "pt"})
        write_json(aside / _CONFIG, config)
        for name, value in (more or {}).items():
            write_json(aside / name, value)


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `export_weights` wrote, onto the CPU.

    Raises:
        UserError: It is not there or cannot be read.
    """
    for name in (_WEIGHTS, _CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give a folder that `trimline` exported, such as .../export")
    return read_tensors(folder / _WEIGHTS), read_described(folder / _CONFIG)


def _rank_file(rank: int) -> str:
    return f"rank_{rank}.safetensors"


def _describe(layout: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(layout.items()))
