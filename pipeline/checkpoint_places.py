"""Folders of checkpoints on this machine and in object stores: each checkpoint in them is complete or absent.

    step_00001234/
        engine_0.safetensors   one per rank: its part of weights and optimizer state (`pipeline/fragments.py`)
        rank_0.safetensors     one per rank: the states of its random generators
        state.safetensors      tensors that the optimizer does not own, whole (queue, trimming)
        values.json            counters and whatever else is not a tensor
        manifest.json          what it was made by, and every file's size and SHA-256
        COMPLETE               SHA-256 of the manifest; written last

A folder without a mark is removed by the next save; a damaged one is ignored, and stays until its step is saved again.
On this machine all ranks write into a hidden folder aside, which is fsynced, renamed, and then marked. A store has no
rename: files go to their place, the mark last.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from data_prep.errors import NoAnswer, UserError
from data_prep.files import disk_full, fsync_dir, sha256_file, write_atomic, write_json
from data_prep.lock import in_use, remove_left
from data_prep.targets import LocalTarget, Target, open_target, write_json_to
from pipeline.checkpoint_rules import Saved
from pipeline.process import Process
from pipeline.together import together

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"
_NAME = re.compile(r"step_(\d{8,})(\.old)?")
_PARTIAL = ".partial_"
_COPY = "trimline-checkpoint-"  # each is as large as a checkpoint, so those that killed processes left must go


def name_of(step: int) -> str:
    """The folder of the checkpoint after a step."""
    return f"step_{step:08d}"


class Place(ABC):
    """A folder of checkpoints.

    Args:
        target: The folder.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def __str__(self) -> str:
        return str(self.target)

    def short_of(self, needed: int) -> int | None:
        """Free bytes, where these are known not to fit; None where they may."""
        return None

    @abstractmethod
    def clean(self, name: str) -> None:
        """Removes what stopped saves left, and makes room for one; the main rank calls it before all write."""

    @abstractmethod
    def aside(self, name: str, process: Process) -> Path:
        """The local folder into which a rank writes its files."""

    @abstractmethod
    def deliver(self, name: str, aside: Path, files: Sequence[str]) -> None:
        """Makes files of a rank durable where they belong."""

    @abstractmethod
    def publish(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Makes a checkpoint complete, in place of an older one of the same step."""

    @abstractmethod
    def abandon(self, name: str, aside: Path) -> None:
        """Removes what a failed save wrote; never raises."""

    @abstractmethod
    def local(self, name: str, process: Process) -> contextlib.AbstractContextManager[Path]:
        """A local folder with a checkpoint's files; every rank asks for it together."""

    def saved(self) -> list[Saved]:
        """Marked checkpoints, the newest first; of one step, what was being replaced comes last."""
        found = []
        for name in self.target.folders():
            match = _NAME.fullmatch(name)
            if match and COMPLETE in self.target.sizes(name):
                found.append((int(match[1]), match[2] is None, name))
        return [self._described(name, step) for step, _, name in sorted(found)[::-1]]

    def newest(self, fingerprint: str) -> Saved | None:
        """As `newest_whole`, of what is trained.

        Args:
            fingerprint: Of what is trained.

        Raises:
            UserError: It is of another training, or as there.
        """
        saved = self.newest_whole()
        if saved is not None and saved.fingerprint != fingerprint:
            raise UserError(
                f"{self} holds checkpoints of another configuration ({saved.name}); give another folder "
                "with --checkpoint.path, or start over with --fresh, which removes them"
            )
        return saved

    def newest_whole(self) -> Saved | None:
        """The newest checkpoint that is whole; None where there is no finished one at all. It only reads.

        Raises:
            UserError: All are damaged, or it cannot be told now.
        """
        there = self.saved()
        for saved in there:
            if self.is_whole(saved.name):
                return saved
            log.warning("%s/%s is incomplete or damaged; using an earlier checkpoint", self, saved.name)
        if there:  # whoever began anew would soon remove them, and drop the log
            raise UserError(
                f"{self} holds no checkpoint that is whole: {', '.join(saved.name for saved in there)} are damaged; "
                "bring one of them back, or start over with --fresh, which removes them"
            )
        return None

    def is_whole(self, name: str) -> bool:
        """Whether the manifest is the marked one and every file has its size; `restore` checks the hashes.

        Raises:
            UserError: It cannot be read now, which does not say that it is damaged.
        """
        try:
            manifest, mark = (self.target.read(f"{name}/{file}") for file in (MANIFEST, COMPLETE))
        except FileNotFoundError:
            return False
        try:
            files, marked = json.loads(manifest)["files"], mark.decode().strip()
        except (ValueError, KeyError, TypeError):
            return False
        sizes = self.target.sizes(name)
        right = all(sizes.get(file) == entry["bytes"] for file, entry in files.items())
        return right and marked == hashlib.sha256(manifest).hexdigest()

    def remove(self, name: str) -> None:
        """Removes a complete checkpoint; the mark goes first: a half-deleted folder must not count as complete."""
        self.target.remove([f"{name}/{COMPLETE}"])
        self.target.remove_folder(name)

    def forget(self) -> None:
        """Removes all checkpoints, complete or not."""
        for saved in self.saved():
            self.remove(saved.name)
        for left in self._unmarked():
            self.target.remove_folder(left)

    def _described(self, name: str, step: int) -> Saved:
        data = b""
        with contextlib.suppress(FileNotFoundError):
            data = self.target.read(f"{name}/{MANIFEST}")
        try:
            manifest = json.loads(data)
        except ValueError:
            manifest = {}  # it is damaged, which `is_whole` tells
        metrics, fingerprint = manifest.get("metrics", {}), manifest.get("fingerprint", "")
        return Saved(name=name, step=step, metrics=metrics, fingerprint=fingerprint)

    def _unmarked(self) -> list[str]:
        return [
            name
            for name in self.target.folders()
            if name.startswith(_PARTIAL) or (_NAME.fullmatch(name) and COMPLETE not in self.target.sizes(name))
        ]


class LocalPlace(Place):
    """A folder that all ranks see."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LocalTarget(folder))
        self.folder = folder

    def short_of(self, needed: int) -> int | None:
        """See `Place.short_of`. It is but advice: where the disk does not answer the save itself will say so."""
        there = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        try:
            disk = shutil.disk_usage(there)
            if not disk.total or disk.free >= needed:  # some file systems tell of no size
                return None
            left = self._unmarked() or any(self.folder.glob("step_*.old"))  # which make room yet (`clean`)
        except (OSError, NoAnswer) as error:
            log.debug("nobody knows how much fits on %s", there, exc_info=error)
            return None
        return None if left else disk.free

    def clean(self, name: str) -> None:
        """See `Place.clean`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self._unmarked():
            shutil.rmtree(self.folder / left)
        for old in self.folder.glob("step_*.old"):
            final = old.with_suffix("")
            if final.exists():
                self.remove(old.name)
            else:
                old.rename(final)
        (self.folder / f"{_PARTIAL}{name}").mkdir()

    def aside(self, name: str, process: Process) -> Path:
        """See `Place.aside`."""
        folder = self.folder / f"{_PARTIAL}{name}"
        if not folder.is_dir():  # the main rank has just made it
            raise UserError(
                f"{self.folder} is not the same folder for all workers: rank {process.rank} on {platform.node()} does "
                "not see what rank 0 wrote; give --checkpoint.path a folder that all machines see, or a URL"
            )
        return folder

    def deliver(self, name: str, aside: Path, files: Sequence[str]) -> None:
        """See `Place.deliver`."""
        for file in files:
            with open(aside / file, "rb") as written:
                os.fsync(written.fileno())

    def publish(self, name: str, manifest: Mapping[str, Any]) -> None:
        """See `Place.publish`."""
        partial, final = self.folder / f"{_PARTIAL}{name}", self.folder / name
        write_json(partial / MANIFEST, manifest)
        fsync_dir(partial)
        old = final.with_name(f"{name}.old")
        if final.exists():
            # Saved again after a restart: the old one counts until the new one is marked.
            final.rename(old)
        partial.rename(final)
        fsync_dir(self.folder)
        write_atomic(final / COMPLETE, sha256_file(final / MANIFEST) + "\n")
        if old.exists():
            self.remove(old.name)

    def abandon(self, name: str, aside: Path) -> None:
        """See `Place.abandon`."""
        shutil.rmtree(self.folder / f"{_PARTIAL}{name}", ignore_errors=True)

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        (self.folder / name / COMPLETE).unlink()
        fsync_dir(self.folder / name)
        shutil.rmtree(self.folder / name)

    @contextlib.contextmanager
    def local(self, name: str, process: Process) -> Iterator[Path]:
        """See `Place.local`."""
        yield self.folder / name


class StorePlace(Place):
    """A folder of an object store; each rank uploads its own files, so that machines need no common disk."""

    def __init__(self, url: str, process: Process) -> None:
        super().__init__(open_target(url))
        self._hold = contextlib.ExitStack()  # of the folder aside
        if self.target.only_here and process.world_size > 1:
            raise UserError(
                f"checkpoint.path={url} is seen by one process only, not by {process.world_size}; give s3://"
            )

    def clean(self, name: str) -> None:
        """See `Place.clean`."""
        for left in self._unmarked():
            self.target.remove_folder(left)
        if COMPLETE in self.target.sizes(name):
            self.remove(name)

    def aside(self, name: str, process: Process) -> Path:
        """See `Place.aside`; this machine's temporary folder."""
        self._hold.close()  # of a save that failed
        remove_left(Path(tempfile.gettempdir()), _COPY)
        folder = Path(tempfile.mkdtemp(prefix=f"{_COPY}{name}-{process.rank}-"))
        self._hold.enter_context(in_use(folder))
        return folder

    def deliver(self, name: str, aside: Path, files: Sequence[str]) -> None:
        """See `Place.deliver`."""
        for file in files:
            with open(aside / file, "rb") as source, self.target.write(f"{name}/{file}") as there:
                shutil.copyfileobj(source, there)
        shutil.rmtree(aside)
        self._hold.close()

    def publish(self, name: str, manifest: Mapping[str, Any]) -> None:
        """See `Place.publish`."""
        write_json_to(self.target, f"{name}/{MANIFEST}", manifest)
        mark = hashlib.sha256(self.target.read(f"{name}/{MANIFEST}")).hexdigest()
        with self.target.write(f"{name}/{COMPLETE}") as file:
            file.write(f"{mark}\n".encode())

    def abandon(self, name: str, aside: Path) -> None:
        """See `Place.abandon`."""
        shutil.rmtree(aside, ignore_errors=True)
        try:
            self.remove(name)  # the mark too: a store may have taken it and said that it failed
        except UserError as error:
            log.warning("what was saved of %s stays in %s: %s", name, self, error)

    @contextlib.contextmanager
    def local(self, name: str, process: Process) -> Iterator[Path]:
        """See `Place.local`; fetched once for each machine, and removed when all ranks have read it."""
        # A fresh name: what a killed process left would not be told from a damaged checkpoint.
        drawn = together(process, lambda: secrets.token_hex(8), str(self))[0]
        folder, hold = Path(tempfile.gettempdir()) / f"{_COPY}{drawn}", contextlib.ExitStack()

        def fetch() -> None:
            if process.local_rank == 0:
                remove_left(Path(tempfile.gettempdir()), _COPY)
                folder.mkdir(mode=0o700, exist_ok=True)  # two nodes may be one machine
                hold.enter_context(in_use(folder))
                for file in self.target.sizes(name):
                    self.target.fetch(f"{name}/{file}", folder / file)

        try:
            together(process, fetch, folder)
            yield folder
            together(process, lambda: None, folder)
        finally:
            if process.local_rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            hold.close()


def newest_saved(where: str | Path) -> Saved | None:
    """`Place.newest_whole` of a folder or URL."""
    return open_place(where, Process()).newest_whole()


def newest_step(where: str | Path) -> int:
    """After which step the newest complete checkpoint of a folder or URL was saved; 0 where there is none."""
    place = open_place(where, Process())
    return next((saved.step for saved in place.saved() if place.is_whole(saved.name)), 0)


def forget_all(path: str, stages: Iterable[str]) -> None:
    """Removes these stages' checkpoints below a `checkpoint.path`, and nothing else."""
    for stage in stages:
        open_place(f"{path.rstrip('/')}/{stage}", Process()).forget()


def check_disk(place: Place, process: Process, files: Iterable[Mapping[str, Tensor]]) -> None:
    """Finds a full disk before another step is done, which would be lost with it; all ranks ask together.

    Args:
        place: Where they are to be written.
        process: This rank.
        files: What this rank is about to write.

    Raises:
        DiskFull: The files of all ranks do not fit; on all ranks.
    """
    mine = sum(tensor.nbytes for tensors in files for tensor in tensors.values())
    needed = sum(together(process, lambda: mine, str(place)))
    free = together(process, lambda: place.short_of(needed) if process.is_main else None, str(place))[0]
    if free is not None:
        said = f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} free"
        raise disk_full(Path(str(place)), OSError(errno.ENOSPC, said))


def open_place(where: str | Path, process: Process) -> Place:
    """The place that a path or a URL names.

    Raises:
        UserError: Nothing here can write there.
    """
    if isinstance(open_target(where), LocalTarget):
        return LocalPlace(Path(str(open_target(where))))
    return StorePlace(str(where), process)
