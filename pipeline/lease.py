"""One live run per `checkpoint.path`: a small file in it says who writes there, renewed every few seconds.

    with Lease(path, run_id, str(out), on_loss) as lease:     # a UserError where another run is alive
        ...                                                   # each save asks `check_lease(path, lease.session)`

It works on whatever fsspec knows, where there are no locks and each machine has a clock of its own: whoever finds the
file of another run looks whether it still changes. A holder that is known to be gone is not waited for: a process of
this machine that has ended, or an earlier start of the same run, whose folder only one process can hold. Two that take
a free path in the same second both write; the later one has it, and the earlier one finds that out before it begins,
or, where its store is slow, at its next sign of life and at its next save, which it then does not make.
"""

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.errors import UserError
from data_prep.files import disk_full, is_disk_full
from data_prep.targets import Target, open_target, write_json_to
from pipeline.pulse import born, is_running
from pipeline.repeating import Repeating

log = logging.getLogger(__name__)

LEASE = "lease.json"
_BEAT_SECONDS = 5.0
_PATIENCE_SECONDS = 30.0  # without a sign of life: several may be lost to a slow store
_LOOK_SECONDS = 1.0
_SETTLE_SECONDS = 1.0
_SHOWN_CHARACTERS = 100


class Lease:
    """Holds a `checkpoint.path` for a run while it is open as a context manager.

    Args:
        path: Folder or URL.
        run: Tells the run from others; an earlier start of it in the same folder is known to have ended.
        folder: Of the run, by which a person knows it; nobody else works in it now.
        on_loss: Called once, from a thread, where another run has taken the path nevertheless, as it may when this
            process or its store did not answer for long.

    Attributes:
        session: Tells this start of the run from others, for `check_lease`.
    """

    def __init__(self, path: str, run: str, folder: str, on_loss: Callable[[], object] = lambda: None) -> None:
        self.session = secrets.token_hex(8)
        self._path = path
        self._target = open_target(path)
        self._on_loss = on_loss
        self._taken: str | None = None
        self._beats = 0
        self._beating = Repeating(self._beat, _BEAT_SECONDS, "lease")
        pid = os.getpid()
        self._mine = {
            "run": run, "session": self.session, "folder": folder, "host": socket.gethostname(), "machine": _machine(),
            "pid": pid, "born": born(pid),
        }  # fmt: skip

    def __enter__(self) -> "Lease":
        """Takes the path.

        Raises:
            UserError: Another run writes there, or nothing can be written there.
        """
        try:
            self._wait_for_others()
            self._renew()
            time.sleep(_SETTLE_SECONDS)  # until whoever found the path free as we did has written, too
            check_lease(self._path, self.session)
        except OSError as error:
            raise _unusable(self._path, error) from error
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beating.close()
        try:
            if not self._taken and _other(self._target, self.session) is None:
                self._target.remove([LEASE])
        except (OSError, UserError) as failure:
            log.info("%s stays marked as in use: %s", self._path, failure)

    def check(self) -> None:
        """Raises where another run has taken the path.

        Raises:
            UserError: It has.
        """
        if self._taken is not None:
            raise UserError(self._taken)

    def _wait_for_others(self) -> None:
        """Returns when nobody else holds the path; a holder of whom nothing is known has some time to show itself."""
        found = _read(self._target)
        if found is None or self._is_over(_entry(found)):
            return
        entry = _entry(found)
        if entry.get("machine") == self._mine["machine"] != "":
            raise UserError(_in_use(self._path, entry))
        words = "%s was in use by %s; looking %g s whether it still is"
        log.warning(words, self._path, _who(entry), _PATIENCE_SECONDS)
        end = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            now = _read(self._target)
            if now is None:
                return
            if now != found:
                raise UserError(_in_use(self._path, _entry(now)))
        log.warning("%s gave no sign of life; its place is taken", _who(entry))

    def _is_over(self, entry: Mapping[str, Any]) -> bool:
        if all(entry.get(key) == self._mine[key] for key in ("run", "folder")):
            return True
        here = entry.get("machine") == self._mine["machine"] != ""
        return here and not is_running(entry.get("pid"), entry.get("born"))

    def _beat(self) -> None:
        try:
            other = _other(self._target, self.session)
            if other is None:
                self._renew()
        except (OSError, UserError) as error:
            # Training goes on: should somebody take the path meanwhile, the next save is refused.
            log.info("the mark of use in %s could not be renewed: %s", self._path, error)
            return
        if other is not None:
            self._taken = _taken(self._path, other)
            self._on_loss()
            self._beating.stop()

    def _renew(self) -> None:
        self._beats += 1
        write_json_to(self._target, LEASE, {**self._mine, "beat": self._beats})


def check_lease(path: str, session: str) -> None:
    """Raises where a path was taken by another run than the one with this session; the main rank asks before it writes.

    Raises:
        UserError: It was.
    """
    other = _other(open_target(path), session)
    if other is not None:
        raise UserError(_taken(path, other))


def _other(target: Target, session: str) -> Mapping[str, Any] | None:
    """Who holds a path, unless it is this session; a mark that somebody has removed is nobody's."""
    found = _read(target)
    entry = {} if found is None else _entry(found)
    return entry if found is not None and entry.get("session") != session else None


def _read(target: Target) -> bytes | None:
    try:
        return target.read(LEASE)
    except FileNotFoundError:
        return None


def _entry(found: bytes) -> Mapping[str, Any]:
    try:
        entry = json.loads(found)
    except ValueError:
        return {}  # somebody else's file; it counts as a holder of whom nothing is known
    return entry if isinstance(entry, dict) else {}


def _machine() -> str:
    """This machine since it was started, and the table of processes that is seen here: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""  # not Linux: holders are judged by their signs of life only


def _who(entry: Mapping[str, Any]) -> str:
    """The holder, in words; what stands in the file is anybody's."""
    words = ("".join(filter(str.isprintable, str(entry.get(key, "?")))) for key in ("folder", "host", "pid"))
    folder, host, pid = (word[:_SHOWN_CHARACTERS] for word in words)
    return f"the run {folder} (process {pid} on {host})"


def _in_use(path: str, entry: Mapping[str, Any]) -> str:
    return (
        f"checkpoint.path={path} is in use by {_who(entry)}; wait for it, stop it, or give another place with "
        "--checkpoint.path"
    )


def _taken(path: str, entry: Mapping[str, Any]) -> str:
    return (
        f"checkpoint.path={path} was taken by {_who(entry)} while this run did not answer; this one saves nothing more "
        "there: stop one of them, or give another place with --checkpoint.path"
    )


def _unusable(path: str, error: OSError) -> UserError:
    if is_disk_full(error):
        return disk_full(Path(path), error)
    return UserError(f"cannot write to checkpoint.path={path}: {error.strerror}; give another one")
