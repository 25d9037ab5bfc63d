"""Checkpoints that are complete or absent, and exported weights.

    step_00001234/
        engine/             weights and optimizer state, written by the engine, each rank its own files
        state.safetensors   tensors that the optimizer does not own, whole (momentum tower, queue)
        rank_0.safetensors  one per rank: the states of its random generators
        values.json         counters and whatever else is not a tensor
        manifest.json       what it fits, and every file's size and SHA-256
        COMPLETE            SHA-256 of the manifest; written last

All ranks write into a hidden folder aside; it is fsynced and renamed, then marked. A folder without a valid
mark is ignored, and removed by the next save. Nothing is unpickled that the manifest does not name by its hash.
"""

import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.errors import UserError
from data_prep.files import (
    atomic_dir,
    disk_full,
    fsync_dir,
    is_disk_full,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
)
from pipeline.engine import Engine
from pipeline.process import Process
from pipeline.tensor_files import read_tensors, write_tensors

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_VERSION = 1
_NAME = re.compile(r"step_(\d{8,})(\.old)?")
_PARTIAL = ".partial_"
_ENGINE = "engine"
_STATE = "state.safetensors"
_VALUES = "values.json"
_MANIFEST = "manifest.json"
_COMPLETE = "COMPLETE"
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"


class RankFailedError(RuntimeError):
    """Another rank failed at what all of them were doing together; its own log has the details."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        folder: Where it lies.
        step: The step that it was saved after.
    """

    folder: Path
    step: int

    def restore(self, engine: Engine, process: Process) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Brings the engine and the random generators of every rank back; every rank must call it.

        Returns:
            The tensors (on the CPU) and values that were given to `CheckpointStore.save`.

        Raises:
            UserError: It was saved under another layout (workers, engine, ZeRO stage) or holds another model, or
                a file is damaged.
        """
        manifest = read_json(self.folder / _MANIFEST)
        self._check_layout(manifest, engine)
        _together(process, lambda: self._check_files(manifest["files"], process), self.folder)
        self._load_engine(engine)
        tensors = read_tensors(self.folder / _STATE)
        values: dict[str, Any] = read_json(self.folder / _VALUES)
        # Last: whatever loading drew must not count.
        _set_rng_state(read_tensors(self.folder / _rank_file(process.rank)))
        return tensors, values

    def _check_layout(self, manifest: dict[str, Any], engine: Engine) -> None:
        wanted, saved = engine.layout(), manifest["layout"]
        if manifest["version"] != _VERSION:
            raise UserError(
                f"{self.folder} has checkpoint format {manifest['version']}, this version of trimline reads "
                f"{_VERSION}; use the version that wrote it, or start over with --fresh"
            )
        if saved != wanted:
            raise UserError(
                f"{self.folder} was saved with {_describe(saved)}, this run has {_describe(wanted)}; "
                "continue with the former, or start over with --fresh"
            )

    def _load_engine(self, engine: Engine) -> None:
        try:
            engine.load(self.folder / _ENGINE)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            difference = str(error).splitlines()[1:2] or [str(error)]
            raise UserError(
                f"{self.folder} holds another model than this run's ({difference[0].strip()}); "
                "give the model it was saved with, or start over with --fresh"
            ) from error

    def _check_files(self, files: dict[str, dict[str, Any]], process: Process) -> None:
        if sorted(files) != _list_files(self.folder):
            raise UserError(f"{self.folder} {_DAMAGED}: it does not hold the files that its manifest names")
        for name in sorted(files)[process.rank :: process.world_size]:
            if sha256_file(self.folder / name) != files[name]["sha256"]:
                raise UserError(f"{self.folder} {_DAMAGED}: {name} is not what was written")


_DAMAGED = "is damaged (delete this folder to continue from the checkpoint before it)"


class CheckpointStore:
    """The checkpoints of one training stage.

    Args:
        folder: Holds one folder for each checkpoint; made at the first save.
        keep_last: How many complete ones stay.
    """

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise UserError(f"keep_last={keep_last} must be at least 1: a run continues from its last checkpoint")
        self.folder = folder
        self.keep_last = keep_last

    def save(
        self,
        step: int,
        engine: Engine,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        process: Process,
    ) -> Path:
        """Writes a checkpoint; every rank must call it, and all of them return or raise.

        Args:
            step: Steps done so far.
            engine: Saves weights and optimizer state.
            tensors: What else the run needs, alike on all ranks; rank 0's are written.
            values: JSON-able; alike on all ranks.
            process: This rank.

        Raises:
            UserError: The disk is full. Earlier checkpoints stay.
        """
        final = self.folder / f"step_{step:08d}"
        partial = self.folder / f"{_PARTIAL}{final.name}"

        def write() -> None:
            engine.save(partial / _ENGINE)
            write_tensors(partial / _rank_file(process.rank), _rng_state(process))
            if process.is_main:
                write_tensors(partial / _STATE, tensors)
                write_json(partial / _VALUES, dict(values))

        try:
            _together(process, lambda: self._clean(partial, process), self.folder)
            _together(process, write, self.folder)
            parts = _together(process, lambda: _seal(partial, process), self.folder)
            files = {name: entry for part in parts for name, entry in sorted(part.items())}
            manifest = {"version": _VERSION, "step": step, "layout": engine.layout(), "files": files}
            _together(process, lambda: self._publish(partial, final, manifest, process), self.folder)
        except BaseException:
            if process.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return final

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None; reads only. Every rank asks before the first save."""
        for checkpoint in self._newest_first():
            if _is_whole(checkpoint.folder):
                return checkpoint
            log.warning("%s is incomplete or damaged; using an earlier checkpoint", checkpoint.folder)
        return None

    def _newest_first(self) -> list[Checkpoint]:
        """Marked ones; `.old` is what a save of the same step was replacing when it was stopped."""
        found = []
        for folder in self.folder.glob("step_*"):
            match = _NAME.fullmatch(folder.name)
            if match and (folder / _COMPLETE).is_file():
                found.append((int(match[1]), match[2] is None, folder))
        return [Checkpoint(folder=folder, step=step) for step, _, folder in sorted(found, reverse=True)]

    def _clean(self, partial: Path, process: Process) -> None:
        if not process.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in self.folder.iterdir():
            unmarked = _NAME.fullmatch(folder.name) and not (folder / _COMPLETE).is_file()
            if unmarked or folder.name.startswith(_PARTIAL):
                shutil.rmtree(folder)
        for old in self.folder.glob("step_*.old"):
            final = old.with_suffix("")
            if final.exists():
                _remove(old)
            else:
                old.rename(final)
        (partial / _ENGINE).mkdir(parents=True)

    def _publish(self, partial: Path, final: Path, manifest: dict[str, Any], process: Process) -> None:
        if not process.is_main:
            return
        write_json(partial / _MANIFEST, manifest)
        for folder in (partial / _ENGINE, partial):
            fsync_dir(folder)
        old = final.with_name(f"{final.name}.old")
        if final.exists():
            # Saved again after a restart: the old one counts until the new one is marked.
            final.rename(old)
        partial.rename(final)
        fsync_dir(self.folder)
        write_atomic(final / _COMPLETE, sha256_file(final / _MANIFEST) + "\n")
        if old.exists():
            _remove(old)
        for checkpoint in self._newest_first()[self.keep_last :]:
            _remove(checkpoint.folder)


def export_weights(folder: Path, state_dict: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Writes weights that others can read: `model.safetensors` and `config.json`, whole or not at all."""
    with atomic_dir(folder) as aside:
        write_tensors(aside / _WEIGHTS, state_dict, metadata={"format": "pt"})
        write_json(aside / _CONFIG, config)


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `export_weights` wrote, onto the CPU.

    Raises:
        UserError: It is not there or cannot be read.
    """
    for name in (_WEIGHTS, _CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give a folder that `trimline` exported, such as .../export")
    return read_tensors(folder / _WEIGHTS), read_json(folder / _CONFIG)


def _remove(folder: Path) -> None:
    # The mark goes first: a half-deleted folder must not count as complete.
    (folder / _COMPLETE).unlink()
    fsync_dir(folder)
    shutil.rmtree(folder)


def _is_whole(folder: Path) -> bool:
    """Whether the manifest is the marked one and every file has its size; hashes are checked by `restore`."""
    try:
        marked = (folder / _COMPLETE).read_text().strip() == sha256_file(folder / _MANIFEST)
        files = read_json(folder / _MANIFEST)["files"] if marked else {}
        return marked and all((folder / name).stat().st_size == files[name]["bytes"] for name in files)
    except (OSError, UserError):
        return False


def _list_files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(set(paths) - {_MANIFEST, _COMPLETE})


def _seal(partial: Path, process: Process) -> dict[str, dict[str, Any]]:
    """Makes this rank's share of all files durable, and returns their sizes and hashes."""
    share = _list_files(partial)[process.rank :: process.world_size]
    for name in share:
        _fsync(partial / name)
    return {name: {"bytes": (partial / name).stat().st_size, "sha256": sha256_file(partial / name)} for name in share}


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _rank_file(rank: int) -> str:
    return f"rank_{rank}.safetensors"


def _describe(layout: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(layout.items()))


def _rng_state(process: Process) -> dict[str, Tensor]:
    """The states of torch's, numpy's and Python's generators."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    state = {
        "torch": torch.get_rng_state(),
        "numpy_words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": torch.tensor(
            [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]], dtype=torch.float64
        ),
        "python_words": torch.tensor([version, *words]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if process.torch_device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(process.torch_device)
    return state


def _set_rng_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    words = state["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_gauss), gauss))
    version, *python_words = state["python_words"].tolist()
    spare = state["python_gauss"].tolist()
    random.setstate((version, tuple(python_words), spare[0] if spare else None))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _together(process: Process, work: Callable[[], _T], folder: Path) -> list[_T]:
    """Runs `work` on every rank, and returns every rank's result to each; raises on all where one fails."""
    failure: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as error:
        failure = _explained(error, folder)
    if process.world_size == 1:
        if failure is not None:
            raise failure
        return [result]
    said = f"{type(failure).__name__}: {failure}" if failure else None
    mine = (result, said, isinstance(failure, UserError))
    gathered: list[Any] = [None] * process.world_size
    dist.all_gather_object(gathered, mine)
    if failure is not None:
        raise failure
    for rank, (_, text, is_user_error) in enumerate(gathered):
        if text is not None:
            raise (UserError(text.partition(": ")[2]) if is_user_error else RankFailedError(f"rank {rank}: {text}"))
    return [entry[0] for entry in gathered]


def _explained(error: Exception, folder: Path) -> Exception:
    """The user's error for a full disk, in whichever way a library says so; other errors as they are."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_disk_full(cause):
            return disk_full(folder, cause)
        cause = cause.__cause__ or cause.__context__
    return error
