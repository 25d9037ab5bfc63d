"""What `trimline cluster submit|status|logs|stop` do."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from data_prep.errors import UserError
from launch.answers import Answer
from launch.cluster.jobs import Jobs, is_over
from launch.given import SAID, read_run, told_value, words_of
from launch.recipes import find_recipe


def submit_command(
    files: Sequence[str],
    overrides: Sequence[str],
    address: str | None,
    command: str,
    python: str,
    fresh: bool = False,
    take_from: str | None = None,
) -> Answer:
    """`trimline cluster submit`; arguments as of `Jobs.submit`.

    Raises:
        UserError: for a mistake in the configuration, or a server that does not answer.
    """
    paths = [find_recipe(name) for name in files]
    given = told_value(paths, overrides, "pretrained")
    if given is not None and not PurePosixPath(given).is_absolute():
        raise UserError(
            f"pretrained={given} is relative, but the job has a folder of its own on other machines; give an absolute "
            "path that all of them see"
        )
    config = read_run(paths, overrides, here=False)
    # There the folder's values lie over those of files, and the job's configuration is one.
    again = [] if given is None else words_of(overrides, *SAID)
    sent = Jobs(address).submit(config, command, python, fresh, take_from, again)
    where = f" --address {sent['address']}"
    text = [
        f"{sent['id']}: sent with {sent['files']} files ({sent['bytes'] / 2**20:.1f} MiB), writes {sent['out']}",
        *(f"  trimline cluster {what} {sent['id']}{where}" for what in ("status", "logs --follow", "stop")),
    ]
    return 0, sent, "\n".join(text)


def status_command(job: str, address: str | None) -> Answer:
    """`trimline cluster status`."""
    state = Jobs(address).status(job)
    return 0, state, state_text(state)


def logs_command(job: str, address: str | None, follow: bool, as_json: bool) -> Answer:
    """`trimline cluster logs`; with `follow` until the job ends, and 1 unless it has succeeded."""
    jobs = Jobs(address)
    if not follow:
        text = jobs.logs(job)
        return 0, {"id": job, "logs": text}, text.rstrip("\n")
    parts = []
    for part in jobs.follow(job):
        parts.append(part)
        if not as_json:
            sys.stdout.write(part)
            sys.stdout.flush()
    state = jobs.status(job)
    return int(state["status"] != "SUCCEEDED"), {**state, "logs": "".join(parts)}, state_text(state)


def stop_command(job: str, address: str | None) -> Answer:
    """`trimline cluster stop`; 1 where the job still runs."""
    state = Jobs(address).stop(job)
    return int(not is_over(state)), state, state_text(state)


def state_text(state: Mapping[str, Any]) -> str:
    """A job's state in words."""
    lines = [f"{state['id']}: {state['status']}{'' if state['started'] is None else ', since ' + state['started']}"]
    if state["ended"]:
        lines[0] += f", ended {state['ended']}"
    if state["out"]:
        lines.append(f"  writes {state['out']}")
    if state["status"] == "FAILED" and state["message"]:
        lines.append(f"  {' '.join(state['message'].split())[-500:]}")
    return "\n".join(lines)
