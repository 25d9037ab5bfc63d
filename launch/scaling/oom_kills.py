"""How many processes the kernel has killed for want of memory, where it says so."""

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def oom_kills(root: Path = _ROOT) -> int | None:
    """The count so far: in this process's control group where that is kept, else on the machine; None where neither is.

    Args:
        root: Of the file system, with proc/ and sys/.
    """
    for path in (*_of_group(root), root / "proc/vmstat"):
        if path.is_file() and (count := _count_in(path)) is not None:
            return count
    return None


def _of_group(root: Path) -> Iterator[Path]:
    """Where the count of this process's control group may stand, of cgroup 2 and of cgroup 1 (see cgroups(7))."""
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control"


def _count_in(path: Path) -> int | None:
    """The number behind ``oom_kill``."""
    words = (line.split() for line in path.read_text().splitlines())
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == "oom_kill"), None)
