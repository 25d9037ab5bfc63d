"""What this machine has, and which versions a run used: for run.json and for checks before a run."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_prep.machine import available_cpus as available_cpus
from data_prep.machine import processor
from data_prep.redact import redact

CPU = "cpu"  # the device of a process without a GPU
COMMIT = "TRIMLINE_COMMIT"  # tells a job on a cluster what it was sent with, for it has no checkout
_PACKAGES = ("trimline", "torch", "ray", "deepspeed", "wandb", "webdataset", "tokenizers", "numpy", "jsonargparse")


def available_gpus() -> int:
    """GPUs that nvidia-smi lists and that are not hidden from this process; torch is not needed for it."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if visible is None else min(count, len([name for name in visible.split(",") if name.strip()]))


def memory_gib() -> float:
    """Main memory of the machine in GiB."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2**30


def gpu_memory_gib() -> float | None:
    """Memory of the smallest GPU that nvidia-smi lists, in GiB; None where it lists none.

    torch is not asked: its context would hold some of the memory for as long as this process lives.
    """
    mebibytes = [int(word) for word in _of_gpus("memory.total") if word.isdecimal()]
    return min(mebibytes) / 1024 if mebibytes else None


def gpu_name() -> str | None:
    """Name of the first GPU that nvidia-smi lists; None where it lists none."""
    return next(iter(_of_gpus("name")), None)


def _of_gpus(key: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", f"--query-gpu={key}", "--format=csv,noheader,nounits"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.strip() for line in listed if line.strip()]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's result may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """CPUs, memory and GPUs."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpus": available_cpus(),
        "memory_gib": round(memory_gib(), 1),
        "gpus": available_gpus(),
    }


def measures_on(gpu: bool) -> dict[str, Any]:
    """What this machine would measure on, as `pipeline.measure.where` says it of a process; torch is not imported.

    Args:
        gpu: Whether it measures on the GPU.
    """
    device = (gpu_name() or "unknown GPU") if gpu else CPU
    return {"device": device, "processor": processor(), "cpus": available_cpus(), "torch": versions()["torch"]}


def git_commit() -> str | None:
    """The commit of the checkout that runs, or that a job was sent from, with ``+changes`` where files differ."""
    folder = Path(__file__).resolve().parent.parent
    commit = _git(folder, "rev-parse", "HEAD")
    # An installed package may lie inside a repository that is not ours.
    if commit is None or _git(folder, "rev-parse", "--show-toplevel") != str(folder):
        return os.environ.get(COMMIT)
    return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *words: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def command() -> str:
    """The command line that started this process, without secrets."""
    program = Path(sys.argv[0]).name
    # `python -m launch` has the name of its file there, which nobody could run.
    words = ["trimline" if program == "__main__.py" else program, *map(redact, sys.argv[1:])]
    return " ".join(f"'{word}'" if " " in word else word for word in words)
