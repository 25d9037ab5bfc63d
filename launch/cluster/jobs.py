"""The job server of a Ray cluster: sends runs there and follows them."""

import importlib.util
import json
import logging
import math
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.errors import UserError
from data_prep.redact import has_secret, redact
from launch.cluster.package import CONFIG, check_portable, make_working_dir
from launch.config import RunConfig
from launch.machine import COMMIT, git_commit

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS = "RAY_API_SERVER_ADDRESS"
_HEADERS = "RAY_JOB_HEADERS"  # as for `ray job`: JSON, for servers that want a token
_POLL_SECONDS = 1.0
_PAUSES = (2.0, 5.0, 10.0, 10.0)
# A run that is stopped writes a checkpoint first; Ray's own patience is 3 s.
_STOP_SECONDS = 120
_LEAVING_SECONDS = 10  # of a run from its last checkpoint to its end


class Jobs:
    """The jobs of a cluster.

    Args:
        address: Of its dashboard, such as http://127.0.0.1:8265; None for RAY_API_SERVER_ADDRESS, or this machine.

    Raises:
        UserError: Nobody answers there, or the client is not installed.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address or os.environ.get(ADDRESS) or DEFAULT_ADDRESS
        if not self.address.startswith(("http://", "https://")) or has_secret(self.address):
            raise UserError(
                f"--address {redact(self.address)} must be the plain address of a Ray dashboard, such as "
                f"{DEFAULT_ADDRESS}; tokens are given as {_HEADERS}='{{\"Authorization\": ...}}'"
            )
        self._client = _client(self.address)

    def submit(
        self,
        config: RunConfig,
        command: str,
        python: str,
        fresh: bool = False,
        take_from: str | None = None,
        again: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Sends a run with the project as its working directory.

        Args:
            config: Of the run.
            command: `run`, or a single stage.
            python: The interpreter's name on the cluster.
            fresh: Whether it starts over.
            take_from: Folder there of another run, of which finished stages are taken over.
            again: Overrides that must be some there too, and not a file's values.

        Raises:
            UserError: The run cannot work on other machines, or the project is too large.
        """
        check_portable(config)
        entrypoint = entrypoint_of(config, command, python, fresh, take_from, again)
        with tempfile.TemporaryDirectory(prefix="trimline-job-") as folder:
            package = make_working_dir(config, Path(folder))
            with self._told("submit", ""):
                job = self._send(
                    f"trimline-{_word(config.name)}",
                    entrypoint=entrypoint,
                    runtime_env={"working_dir": folder, "env_vars": _variables(config)},
                    metadata={"name": config.name, "out": config.out, "command": command},
                )
        return {"id": job, "address": self.address, "out": config.out, "entrypoint": entrypoint, **package}

    def _send(self, name: str, **job: Any) -> str:
        """Sends a job, and again where the server fails: it answers before the part of it that starts jobs does."""
        for pause in _PAUSES:
            try:
                return str(self._client.submit_job(submission_id=f"{name}-{secrets.token_hex(4)}", **job))
            except RuntimeError as error:
                if "status code 500" not in str(error):
                    raise
                time.sleep(pause)
        return str(self._client.submit_job(submission_id=f"{name}-{secrets.token_hex(4)}", **job))

    def status(self, job: str) -> dict[str, Any]:
        """A job's state: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`, since when, and why.

        Raises:
            UserError: There is no such job.
        """
        with self._told("status", job):
            info = self._client.get_job_info(job)
        metadata = info.metadata or {}
        return {
            "id": job,
            "address": self.address,
            "status": str(getattr(info.status, "value", info.status)),
            "name": metadata.get("name"),
            "out": metadata.get("out"),
            "started": _moment(info.start_time),
            "ended": _moment(info.end_time),
            "exit_code": info.driver_exit_code,
            "message": redact(info.message or ""),
        }

    def logs(self, job: str) -> str:
        """What a job has written so far.

        Raises:
            UserError: There is no such job.
        """
        with self._told("logs", job):
            return redact(self._client.get_job_logs(job) or "")

    def follow(self, job: str) -> Iterator[str]:
        """What a job writes, piece by piece until it ends."""
        shown = ""
        while True:
            over = is_over(self.status(job))
            text = self.logs(job)
            if text != shown:
                # A log that was cut off at its beginning is shown anew.
                yield text[len(shown) :] if text.startswith(shown) else text
                shown = text
            if over:
                return
            time.sleep(_POLL_SECONDS)

    def stop(self, job: str) -> dict[str, Any]:
        """Asks a job to end and waits until it has, a checkpoint included; returns its state.

        Raises:
            UserError: There is no such job.
        """
        with self._told("stop", job):
            self._client.stop_job(job)
        end = time.monotonic() + _STOP_SECONDS + 10
        while not is_over(state := self.status(job)) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return state

    @contextmanager
    def _told(self, what: str, job: str) -> Iterator[None]:
        """Errors of the client as mistakes of the user's, where they are."""
        try:
            yield
        except RuntimeError as error:
            line = " ".join(redact(str(error)).split())
            if "404" in line:
                raise UserError(f"no job {job} at {self.address}; `ray job list` shows those that there are") from error
            raise UserError(f"the job server at {self.address} failed to {what} (...{line[-300:]})") from error
        except OSError as error:  # requests' errors are of this kind
            raise UserError(_unreachable(self.address, error)) from error


def entrypoint_of(
    config: RunConfig,
    command: str,
    python: str,
    fresh: bool = False,
    take_from: str | None = None,
    again: Sequence[str] = (),
) -> str:
    """The job's command line; arguments as of `Jobs.submit`.

    Raises:
        UserError: `take_from` is a relative path.
    """
    if take_from is not None and not PurePosixPath(take_from).is_absolute():
        raise UserError(
            f"--take_from {take_from} is relative, but the job has a folder of its own on other machines; give an "
            "absolute path that all of them see"
        )
    words = [python, "-m", "launch", command, CONFIG, "--cluster.address", "auto"]
    words += ["--cluster.notice_seconds", f"{_notice(config):g}"]
    words += [*again, *(["--fresh"] if fresh else [])]
    return shlex.join(words + (["--take_from", take_from] if take_from is not None else []))


def _notice(config: RunConfig) -> float:
    """Seconds for a last checkpoint: all that Ray's job server gives, or more where the configuration says so."""
    return max(config.cluster.notice_seconds, _STOP_SECONDS - _LEAVING_SECONDS)


def is_over(state: Mapping[str, Any]) -> bool:
    """Whether a job has come to an end, good or bad."""
    return state["status"] in ("SUCCEEDED", "FAILED", "STOPPED")


def _client(address: str) -> Any:
    if importlib.util.find_spec("aiohttp") is None:  # Ray's client wants it, and says so by a traceback
        mend = "pip install -e '.[cluster]' in Trimline's checkout"
        raise UserError(f"the client of Ray's job server is not installed; {mend}")
    from ray.job_submission import JobSubmissionClient

    for noisy in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{noisy}").setLevel(logging.ERROR)
    from ray.exceptions import AuthenticationError

    with _only(address):
        try:
            return JobSubmissionClient(address, headers=_headers())
        except AuthenticationError as error:
            raise UserError(
                f"the job server at {address} wants another token; give the cluster's with "
                "RAY_AUTH_TOKEN_PATH=FILE, or in ~/.ray/auth_token"
            ) from error
        except (OSError, RuntimeError) as error:
            raise UserError(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    line = " ".join(redact(str(error)).split())[:200]
    return (
        f"no Ray job server answers at {address} ({line}); give its dashboard's address with --address, which "
        "`ssh -L 8265:127.0.0.1:8265 HEAD` brings here from a head node"
    )


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Lets the given address count, and not Ray's variables, which its client prefers."""
    kept = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", ADDRESS) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _headers() -> dict[str, str]:
    """What the server knows the user by.

    Raises:
        UserError: The variable that says so holds something else.
    """
    try:
        given = json.loads(os.environ.get(_HEADERS) or "{}")
    except ValueError as error:
        raise UserError(f'{_HEADERS} holds no JSON; give an object, such as {{"Authorization": ...}}') from error
    if not isinstance(given, dict):
        raise UserError(f"{_HEADERS} holds a {type(given).__name__}; give a JSON object")
    headers = {str(name): str(value) for name, value in given.items()}
    token = _token()
    if token and "authorization" not in map(str.lower, headers):
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _token() -> str | None:
    """The cluster's token where Ray looks for it; its client looks only where RAY_AUTH_MODE says that there is one."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named:
            raise UserError(f"RAY_AUTH_TOKEN_PATH={named} cannot be read: {error.strerror}") from error
        return None


def _variables(config: RunConfig) -> dict[str, str]:
    """For the job's processes; no secrets, because the dashboard shows them to everybody."""
    commit = git_commit()
    return {
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(_notice(config) + _LEAVING_SECONDS)),  # Ray reads a whole number
        **({COMMIT: commit} if commit else {}),
    }


def _word(name: str) -> str:
    """A name as a part of an id: letters, digits, dashes."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name).strip("-") or "run"


def _moment(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
