"""Whether this command is one that torchrun or Slurm has started before: they start the same words again."""

import os
import socket
from collections.abc import Mapping

from pipeline.pulse import born

_TORCHRUN, _SLURM, _REQUEUED = "torchrun", "slurm", "slurm_restarts"
_NAMELESS = "none"  # torchrun's own --rdzv-id, where none is given


def launch_names(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What names the launch that this process belongs to, by who launched it, and stays where it is started again.

    Args:
        environment: torchrun's and Slurm's variables.
    """
    names = {}
    if run := environment.get("TORCHELASTIC_RUN_ID"):
        # torchrun's count of restarts is no sign: on a machine whose own processes did not fail it stays.
        # Under a wrapper that stays, as `uv run` does, the parent is the wrapper: docs/faults.md asks for a name there.
        agent = os.getppid()
        names[_TORCHRUN] = run if run != _NAMELESS else f"{socket.gethostname()} {agent} {born(agent)}"
    if job := environment.get("SLURM_JOB_ID"):
        names |= {_SLURM: job, _REQUEUED: environment.get("SLURM_RESTART_COUNT", "0")}
    return names


def is_relaunch(noted: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process belongs to the launch that was noted, and so only goes on with it.

    Args:
        noted: What `launch_names` gave then.
        environment: torchrun's and Slurm's variables.
    """
    now = launch_names(environment)
    if _TORCHRUN in now and now[_TORCHRUN] == noted.get(_TORCHRUN):
        return True
    # Within one job of Slurm's a person may give the same command twice; only a requeued job does so by itself.
    same = _SLURM in now and now[_SLURM] == noted.get(_SLURM)
    return same and int(now[_REQUEUED]) > int(noted.get(_REQUEUED, 0))
